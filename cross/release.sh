#!/usr/bin/env bash
# Makes a release: every program and every package, in one folder: cross/release.sh [--check] [FOLDER]
#
# FOLDER (target/release-VERSION) then holds archives, .deb, .ipk, .apk, container images, the sources, recipes for Arch, Alpine,
# OpenWrt and Home Assistant, the list of parts (SBOM) and SHA256SUMS. The same commit and tools make the same bytes in any
# folder. It starts from a clean clone, and takes an hour on two cores. CROSS_TOOLS and CROSS_TARGET: see cross/build.sh.
#
#   --check  install, start, upgrade and remove what was made, in a root of its own each (as root on Debian)
set -euo pipefail
# shellcheck source=cross/packages/common.sh
source "$(dirname "$0")/packages/common.sh"

targets=(aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf armv5te-unknown-linux-musleabi
    mips-unknown-linux-musl mipsel-unknown-linux-musl riscv64gc-unknown-linux-musl x86_64-unknown-linux-musl i686-unknown-linux-musl)
debian=(arm64 armhf armel amd64 i386 riscv64)
# The architectures of OpenWrt's most common devices; cross/packages/openwrt.sh makes packages for the others.
openwrt=(aarch64_cortex-a53 aarch64_cortex-a72 aarch64_cortex-a76 aarch64_generic arm_arm1176jzf-s_vfp arm_arm926ej-s
    arm_cortex-a5_vfpv4 arm_cortex-a7_neon-vfpv4 arm_cortex-a7_vfpv4 arm_cortex-a8_vfpv3 arm_cortex-a9 arm_cortex-a9_neon
    arm_cortex-a9_vfpv3-d16 arm_cortex-a15_neon-vfpv4 arm_xscale i386_pentium4 mips_24kc mipsel_24kc mipsel_74kc riscv64_riscv64
    x86_64)
platforms=(arm64 amd64 armv7 armv6 riscv64)

usage() { sed -n '2,8s/^# \?//p' cross/release.sh; }

# Ends the script unless what is built is what the commit says.
demand_clean_clone() {
    local tag=${GITHUB_REF_NAME:-$(git describe --exact-match --match 'v*' 2>/dev/null || true)}
    [[ -z $(git status --porcelain) ]] || die "commit or remove these first: $(git status --short)"
    [[ ! $tag || $tag == "v$(version)" ]] || die "the tag is $tag, but Cargo.toml says $(version)"
    grep -q "^## $(version) - " CHANGELOG.md || die "CHANGELOG.md has no dated section for $(version)"
}

make_sources() {
    local name
    name=ankipi-$(version)
    git archive --prefix="$name/" HEAD | gzip -9n >"$folder/$name-source.tar.gz"
}

# The recipes with the sum of the sources in them, so that they stand beside these.
make_recipes() {
    local work name sum
    name=ankipi-$(version)
    sum=$(sha256sum "$folder/$name-source.tar.gz" | cut -d' ' -f1)
    work=$(mktemp -d)
    mkdir "$work/$name-recipes"
    cp -r cross/packages/{arch,alpine,home-assistant} cross/packages/openwrt/feed cross/packages/image/{compose.yaml,ankipi.container} \
        "$work/$name-recipes"
    sed -i "s/^pkgver=.*/pkgver=$(version)/; s/^sha256sums=.*/sha256sums=($sum)/" "$work/$name-recipes/arch/PKGBUILD"
    sed -i "s/^pkgver=.*/pkgver=$(version)/" "$work/$name-recipes/alpine/APKBUILD"
    sed -i "s/^PKG_VERSION:=.*/PKG_VERSION:=$(version)/; s/^PKG_HASH:=.*/PKG_HASH:=$sum/" "$work/$name-recipes/feed/Makefile"
    sed -i "s/^version: .*/version: \"$(version)\"/" "$work/$name-recipes/home-assistant/config.yaml"
    chmod -R u=rwX,go=rX "$work"
    pack "$work" "$name-recipes" >"$folder/$name-recipes.tar.gz"
    rm -r "$work"
}

# One of each kind: the weakest processor whose tools are to be had.
check_all() {
    local image arch platform
    image=$folder/ankipi-$(version)-image
    cross/check.sh --brief "${targets[@]}"
    for arch in armhf arm64 amd64; do cross/checks/deb.sh "$folder/ankipi_$(version)-1_$arch.deb"; done
    for arch in mips_24kc mipsel_24kc aarch64_cortex-a53; do cross/checks/openwrt.sh "$folder/ankipi_$(version)-r1_$arch.ipk"; done
    cross/checks/openwrt.sh "$folder/ankipi-$(version)-mips-unknown-linux-musl.tar.gz"
    if "${APK:-apk}" --version 2>/dev/null | grep -q 'apk-tools 3'; then
        cross/checks/openwrt.sh "$folder/ankipi-$(version)-r1_mips_24kc.apk"
    else
        say "no apk-tools 3 here (APK=PROGRAM names it): the .apk files are not installed"
    fi
    for platform in armv6 arm64 amd64; do cross/checks/image.sh "$image-$platform.tar"; done
    cross/checks/recipes.sh
}

check=
folder=
for word; do
    case $word in
        -h | --help) usage; exit ;;
        --check) check=1 ;;
        -*) die "$word is not an option; --help tells more" ;;
        *) folder=$word ;;
    esac
done
demand_clean_clone
folder=$(realpath -m "${folder:-target/release-$(version)}")
mkdir -p "$folder"
rm -f "$folder"/*
for target in "${targets[@]}"; do bench=1 build_for "$target"; done
# What is built need not be built again for each package.
export CROSS_BUILT=1
cross/packages/tarball.sh "${targets[@]}"
cross/packages/deb.sh "${debian[@]}"
cross/packages/openwrt.sh "${openwrt[@]}"
cross/packages/image.sh "${platforms[@]}"
mv "$out"/ankipi{-,_}*"$(version)"*.{tar.gz,deb,ipk,apk,tar} "$folder" 2>/dev/null || true
make_sources
make_recipes
cross/packages/sbom.py >"$folder/ankipi-$(version).cdx.json"
(cd "$folder" && LC_ALL=C sha256sum -- * >SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
(cd "$folder" && wc -c -- * | sed '$d' | while read -r bytes name; do printf '%9d  %s\n' "$bytes" "$name"; done)
if [[ $check ]]; then check_all; fi
