#!/usr/bin/env bash
# Makes a release: every program and every package, in one folder: cross/release.sh [--check] [--only TARGET]... [FOLDER]
#
# FOLDER (target/release-VERSION) then holds archives, .deb, .ipk, .apk, container images, the sources, recipes for Arch, Alpine,
# OpenWrt and Home Assistant, the list of parts (SBOM) and SHA256SUMS. The same commit and tools make the same bytes in any
# folder. It starts from a clean clone, and takes an hour on two cores. CROSS_TOOLS and CROSS_TARGET: see cross/build.sh.
#
#   --check        install, start, upgrade and remove what was made, in a root of its own each (as root on Debian; with
#                  APK=PROGRAM, apk-tools 3, the .apk files too)
#   --only TARGET  the programs and packages of this target alone
set -euo pipefail
# shellcheck source=cross/packages/common.sh
source "$(dirname "$0")/packages/common.sh"

targets=(aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf armv5te-unknown-linux-musleabi
    mips-unknown-linux-musl mipsel-unknown-linux-musl riscv64gc-unknown-linux-musl x86_64-unknown-linux-musl i686-unknown-linux-musl)
# What is packed with the program of each target: names of Debian, of OpenWrt, and of container engines. For OpenWrt, those of its
# most common devices; cross/packages/openwrt.sh makes packages for the others.
# shellcheck disable=SC2034  # for_each reads it by name
declare -A debian=([aarch64-unknown-linux-musl]=arm64 [arm-unknown-linux-musleabihf]=armhf [armv5te-unknown-linux-musleabi]=armel
    [x86_64-unknown-linux-musl]=amd64 [i686-unknown-linux-musl]=i386 [riscv64gc-unknown-linux-musl]=riscv64)
declare -A openwrt=(
    [aarch64-unknown-linux-musl]="aarch64_cortex-a53 aarch64_cortex-a72 aarch64_cortex-a76 aarch64_generic"
    [armv7-unknown-linux-musleabihf]="arm_cortex-a5_vfpv4 arm_cortex-a7_neon-vfpv4 arm_cortex-a7_vfpv4 arm_cortex-a8_vfpv3
        arm_cortex-a9_neon arm_cortex-a9_vfpv3-d16 arm_cortex-a15_neon-vfpv4"
    [arm-unknown-linux-musleabihf]=arm_arm1176jzf-s_vfp
    [armv5te-unknown-linux-musleabi]="arm_arm926ej-s arm_cortex-a9 arm_xscale"
    [mips-unknown-linux-musl]=mips_24kc [mipsel-unknown-linux-musl]="mipsel_24kc mipsel_74kc"
    [riscv64gc-unknown-linux-musl]=riscv64_riscv64 [x86_64-unknown-linux-musl]=x86_64 [i686-unknown-linux-musl]=i386_pentium4)
# shellcheck disable=SC2034
declare -A platforms=([aarch64-unknown-linux-musl]=arm64 [x86_64-unknown-linux-musl]=amd64
    [armv7-unknown-linux-musleabihf]=armv7 [arm-unknown-linux-musleabihf]=armv6 [riscv64gc-unknown-linux-musl]=riscv64)

help() { sed -n '2,11s/^# \?//p' cross/release.sh; }

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

# The recipes with the sum of the sources in them, so that they stand beside these, and with the address of the forge that makes the
# release.
make_recipes() {
    local work name sum address=${GITHUB_REPOSITORY:+$GITHUB_SERVER_URL/$GITHUB_REPOSITORY}
    name=ankipi-$(version)
    sum=$(sha256sum "$folder/$name-source.tar.gz" | cut -d' ' -f1)
    work=$(mktemp -d)
    mkdir "$work/$name-recipes"
    cp -r cross/packages/{arch,alpine,home-assistant} cross/packages/openwrt/feed cross/packages/image/{compose.yaml,ankipi.container} \
        "$work/$name-recipes"
    sed -i "s/^pkgver=.*/pkgver=$(version)/; s/^sha256sums=.*/sha256sums=($sum)/" "$work/$name-recipes/arch/PKGBUILD"
    sed -i "s/^pkgver=.*/pkgver=$(version)/" "$work/$name-recipes/alpine/APKBUILD"
    sed -i "s/^PKG_VERSION:=.*/PKG_VERSION:=$(version)/; s/^PKG_HASH:=.*/PKG_HASH:=$sum/" "$work/$name-recipes/feed/Makefile"
    [[ ! $address ]] || sed -i "s|^url=.*|url=\"$address\"|; /^# No address is public/d" \
        "$work/$name-recipes"/{arch/PKGBUILD,alpine/APKBUILD}
    sed -i "s/^version: .*/version: \"$(version)\"/" "$work/$name-recipes/home-assistant/config.yaml"
    chmod -R u=rwX,go=rX "$work"
    pack "$work" "$name-recipes" >"$folder/$name-recipes.tar.gz"
    rm -r "$work"
}

# for_each LIST COMMAND: calls COMMAND with the names that LIST has for the targets; nothing, if it has none.
for_each() {
    local -n list=$1
    local target names=()
    # shellcheck disable=SC2206  # several names
    for target in "${targets[@]}"; do names+=(${list[$target]:-}); done
    [[ ${#names[@]} == 0 ]] || "$2" "${names[@]}"
}

has_apk() { "${APK:-apk}" --version 2>/dev/null | grep -q 'apk-tools 3'; }

check_debs() {
    local arch
    for arch; do
        # Debian has no riscv64 of that release.
        [[ $arch == riscv64 ]] || cross/checks/deb.sh "$folder/ankipi_$(version)-1_$arch.deb"
    done
}

# The packages of a target differ in their names alone, so the first is taken.
check_routers() {
    local target arch
    for target in "${targets[@]}"; do
        arch=${openwrt[$target]%% *}
        cross/checks/openwrt.sh "$folder/ankipi-$(version)-$target.tar.gz"
        cross/checks/openwrt.sh "$folder/ankipi_$(version)-r1_$arch.ipk"
        if has_apk; then cross/checks/openwrt.sh "$folder/ankipi-$(version)-r1_$arch.apk"; fi
    done
}

check_images() {
    local platform
    for platform; do cross/checks/image.sh "$folder/ankipi-$(version)-image-$platform.tar"; done
}

# Everything that can run here or under an emulator.
check_all() {
    has_apk || say "no apk-tools 3 here (APK=PROGRAM names it): the .apk files and Alpine's recipe are not tried"
    cross/check.sh --brief "${targets[@]}"
    for_each debian check_debs
    check_routers
    for_each platforms check_images
    cross/checks/recipes.sh
    if [[ -x $out/x86_64-unknown-linux-musl/ankipi && $(uname -m) == x86_64 ]]; then
        cross/checks/arch.sh "$out/x86_64-unknown-linux-musl/ankipi"
        if has_apk; then cross/checks/alpine.sh "$out/x86_64-unknown-linux-musl/ankipi"; fi
    fi
    cross/checks/cargo-install.sh
}

check=
folder=
only=()
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) help; exit ;;
        --check) check=1 ;;
        --only)
            is_target "${2:-}" || die "${2:-} is not a target; cross/build.sh --help lists them"
            only+=("$2")
            shift
            ;;
        -*) die "$1 is not an option; --help tells more" ;;
        *) folder=$1 ;;
    esac
    shift
done
[[ ${#only[@]} == 0 ]] || targets=("${only[@]}")
demand_clean_clone
folder=$(realpath -m "${folder:-target/release-$(version)}")
mkdir -p "$folder"
rm -f "$folder"/*
for target in "${targets[@]}"; do bench=1 build_for "$target"; done
# What is built need not be built again for each package.
export CROSS_BUILT=1
cross/packages/tarball.sh "${targets[@]}"
for_each debian cross/packages/deb.sh
for_each openwrt cross/packages/openwrt.sh
for_each platforms cross/packages/image.sh
mv "$out"/ankipi{-,_}*"$(version)"*.{tar.gz,deb,ipk,apk,tar} "$folder" 2>/dev/null || true
make_sources
make_recipes
cross/packages/sbom.py >"$folder/ankipi-$(version).cdx.json"
(cd "$folder" && LC_ALL=C sha256sum -- * >SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
(cd "$folder" && wc -c -- * | sed '$d' | while read -r bytes name; do printf '%9d  %s\n' "$bytes" "$name"; done)
if [[ $check ]]; then check_all; fi
