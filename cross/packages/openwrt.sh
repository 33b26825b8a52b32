#!/usr/bin/env bash
# Makes packages for OpenWrt, without Docker: cross/packages/openwrt.sh ARCH...
#
# ARCH is what the router calls itself: the name that `apk --print-arch` or, last of all, `opkg print-architecture` prints, such
# as aarch64_cortex-a53, arm_arm1176jzf-s_vfp, arm_cortex-a7_neon-vfpv4, mips_24kc, mipsel_24kc, riscv64_riscv64 or x86_64. The
# results are CROSS_TARGET/ankipi_*.ipk for OpenWrt up to 24.10, and ankipi-*.apk from 25.12 on. Builds the program first
# (cross/build.sh).
set -euo pipefail
# shellcheck source=cross/packages/common.sh
source "$(dirname "$0")/common.sh"

target_of() {
    case $1 in
        aarch64_*) echo aarch64-unknown-linux-musl ;;
        arm_arm1176*_vfp) echo arm-unknown-linux-musleabihf ;;
        arm_cortex-a*_neon* | arm_cortex-a*_vfp*) echo armv7-unknown-linux-musleabihf ;;
        # Without an FPU, or without one that the kernel may count on.
        arm_arm926ej-s | arm_xscale | arm_cortex-a9) echo armv5te-unknown-linux-musleabi ;;
        i386_pentium4) echo i686-unknown-linux-musl ;;
        mips_24kc* | mips_74kc*) echo mips-unknown-linux-musl ;;
        mipsel_24kc* | mipsel_74kc*) echo mipsel-unknown-linux-musl ;;
        riscv64_*) echo riscv64gc-unknown-linux-musl ;;
        x86_64) echo x86_64-unknown-linux-musl ;;
        *) die "ankipi is not built for routers of $1; --help tells which" ;;
    esac
}

# The program is static: it depends on nothing. OpenWrt makes the user from Require-User.
control() {
    cat <<END
Package: ankipi
Version: $revision
Section: net
Architecture: $1
Maintainer: $(maintainer)
License: MIT OR Apache-2.0
Require-User: ankipi:ankipi
Installed-Size: $2
SourceDateEpoch: $SOURCE_DATE_EPOCH
Description: Sync server for Anki that fits small boards
 Anki desktop, AnkiDroid and AnkiMobile sync their cards and media with it
 instead of AnkiWeb. The data belongs on a USB stick or SD card.
END
}

# Fills the folder $2 with what the package for $1 installs.
fill() {
    install -D -m 755 "$out/$(target_of "$1")/ankipi" "$2/usr/bin/ankipi"
    # The name of Anki's own server.
    ln -s ankipi "$2/usr/bin/anki-sync-server"
    install -D -m 755 cross/init/openwrt/ankipi.init "$2/etc/init.d/ankipi"
    install -D -m 600 cross/init/openwrt/ankipi.config "$2/etc/config/ankipi"
    find "$2" -type d -exec chmod 755 {} +
}

make_ipk() {
    local ipk=$out/ankipi_${revision}_$1.ipk
    mkdir "$work/control"
    control "$1" "$(du -sb "$work/data" | cut -f1)" >"$work/control/control"
    echo /etc/config/ankipi >"$work/control/conffiles"
    install -m 755 cross/packages/openwrt/{postinst,prerm} "$work/control"
    chmod 644 "$work/control/control" "$work/control/conffiles"
    echo 2.0 >"$work/debian-binary"
    pack "$work/data" . >"$work/data.tar.gz"
    pack "$work/control" . >"$work/control.tar.gz"
    pack "$work" ./debian-binary ./data.tar.gz ./control.tar.gz >"$ipk.new"
    finish "$ipk"
}

# An .apk script: OpenWrt's own functions do for every package what $2 names, after $1.
script() {
    cat <<END
#!/bin/sh
[ -s "\$IPKG_INSTROOT/lib/functions.sh" ] || exit 0
. "\$IPKG_INSTROOT/lib/functions.sh"
export root="\$IPKG_INSTROOT" pkgname=ankipi $1
$2
END
}

# What .ipk packages say in control, .apk ones say in files that OpenWrt's functions read.
make_apk() {
    local apk=$out/ankipi-${revision}_$1.apk lists=$work/data/lib/apk/packages
    (cd "$work/data" && find . -type f,l -printf '/%P\n') | LC_ALL=C sort >"$work/list"
    mkdir -p "$lists"
    mv "$work/list" "$lists/ankipi.list"
    echo ankipi:ankipi >"$lists/ankipi.rusers"
    echo /etc/config/ankipi >"$lists/ankipi.conffiles"
    echo "/etc/config/ankipi $(sha256sum "$work/data/etc/config/ankipi" | cut -d' ' -f1)" >"$lists/ankipi.conffiles_static"
    chmod 755 "$work/data"/lib{,/apk{,/packages}}
    chmod 644 "$lists"/*
    script "" $'add_group_and_user\ndefault_postinst' >"$work/post-install"
    script PKG_UPGRADE=1 $'add_group_and_user\ndefault_postinst' >"$work/post-upgrade"
    # Without this the server of before runs on: procd starts none anew whose command and settings are the same.
    script PKG_UPGRADE=1 default_prerm >"$work/pre-upgrade"
    script "" default_prerm >"$work/pre-deinstall"
    python3 cross/packages/openwrt/adb.py "$apk.new" "$work/data" name=ankipi version="$revision" arch="$1" \
        description="Sync server for Anki that fits small boards" license="MIT OR Apache-2.0" origin=ankipi \
        maintainer="$(maintainer)" build-time="$SOURCE_DATE_EPOCH" post-install="$work/post-install" \
        pre-upgrade="$work/pre-upgrade" post-upgrade="$work/post-upgrade" pre-deinstall="$work/pre-deinstall"
    finish "$apk"
}

case ${1:-} in
    "" | -h | --help) sed -n '2,8s/^# \?//p' cross/packages/openwrt.sh; [[ ${1:-} ]] || exit 2; exit ;;
esac
for arch; do target_of "$arch" >/dev/null; done
revision=${OPENWRT_VERSION:-$(version)-r1}
for arch; do
    build_for "$(target_of "$arch")"
    work=$(mktemp -d)
    mkdir "$work/data"
    fill "$arch" "$work/data"
    make_ipk "$arch"
    make_apk "$arch"
    rm -r "$work"
done
