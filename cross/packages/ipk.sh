#!/usr/bin/env bash
# Makes packages for OpenWrt up to 24.10, without Docker: cross/packages/ipk.sh ARCH...   (CROSS_TARGET/ankipi_*.ipk)
#
# ARCH is what the router calls itself: the name that `opkg print-architecture` prints last, such as aarch64_cortex-a53,
# arm_arm1176jzf-s_vfp, arm_cortex-a7_neon-vfpv4, mipsel_24kc, riscv64_riscv64 or x86_64. OpenWrt 25.12 and later install
# .apk files, which only their own build system makes: cross/packages/tarball.sh has an install.sh for those. Builds the
# program first (cross/build.sh).
set -euo pipefail
# shellcheck source=cross/packages/common.sh
source "$(dirname "$0")/common.sh"

target_of() {
    case $1 in
        aarch64_*) echo aarch64-unknown-linux-musl ;;
        arm_arm1176*_vfp) echo arm-unknown-linux-musleabihf ;;
        arm_cortex-a*_neon* | arm_cortex-a*_vfp*) echo armv7-unknown-linux-musleabihf ;;
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
    install -D -m 755 cross/init/openwrt/ankipi.init "$2/etc/init.d/ankipi"
    install -D -m 600 cross/init/openwrt/ankipi.config "$2/etc/config/ankipi"
    ln -s ankipi "$2/usr/bin/anki-sync-server"
    find "$2" -type d -exec chmod 755 {} +
}

package() {
    local work ipk=$out/ankipi_${revision}_$1.ipk
    work=$(mktemp -d)
    mkdir "$work/data" "$work/control"
    fill "$1" "$work/data"
    control "$1" "$(du -sb "$work/data" | cut -f1)" >"$work/control/control"
    echo /etc/config/ankipi >"$work/control/conffiles"
    install -m 755 cross/packages/ipk/postinst cross/packages/ipk/prerm "$work/control"
    chmod 644 "$work/control/control" "$work/control/conffiles"
    echo 2.0 >"$work/debian-binary"
    pack "$work/data" . >"$work/data.tar.gz"
    pack "$work/control" . >"$work/control.tar.gz"
    pack "$work" ./debian-binary ./data.tar.gz ./control.tar.gz >"$ipk.new"
    rm -r "$work"
    finish "$ipk"
}

case ${1:-} in
    "" | -h | --help) sed -n '2,7s/^# \?//p' "$0"; [[ ${1:-} ]] || exit 2; exit ;;
esac
for arch; do target_of "$arch" >/dev/null; done
revision=$(version)-1
for arch; do
    build_for "$(target_of "$arch")"
    package "$arch"
done
