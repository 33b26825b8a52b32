#!/usr/bin/env bash
# Installs a package or an archive as on an OpenWrt router, lets real clients sync with it, upgrades it while it runs, and removes
# it: cross/checks/openwrt.sh IPK|APK|ARCHIVE
#
# As root on Debian. The functions that a router's own files have (init scripts, settings, procd) are stood for by
# tests/ops/openwrt, and opkg by this script. An .apk is installed by apk-tools 3, which Debian does not have: APK names the
# program (https://gitlab.alpinelinux.org/alpine/apk-tools).
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=cross/shared/say.sh
source "$repo/cross/shared/say.sh"
# shellcheck source=cross/shared/emulate.sh
source "$repo/cross/shared/emulate.sh"

[[ $# == 1 && -f $1 ]] || die "name a package or an archive; cross/packages/openwrt.sh and cross/packages/tarball.sh make them"
file=$1
need busybox busybox-static
"$repo/tests/real/install"
work=$(mktemp -d)
root=$work/root
info=$root/usr/lib/opkg/info
cleanup() {
    [[ ! -e $root/var/run/ankipi.pid ]] || kill "$(cat "$root/var/run/ankipi.pid")" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

expect() { [[ $2 == "$3" ]] || die "$1: '$2' instead of '$3'"; }

# A router: busybox, a user, and what stands for its own functions.
make_root() {
    mkdir -p "$root"/{bin,sbin,dev,lib,mnt/stick,tmp,var/run,usr/bin,usr/sbin,usr/lib/opkg/info,etc/rc.d}
    chmod 755 "$work"
    cp "$(command -v busybox)" "$root/bin/"
    chroot "$root" /bin/busybox --install -s
    mknod -m 666 "$root/dev/null" c 1 3
    mknod -m 666 "$root/dev/urandom" c 1 9
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    cp "$repo/tests/ops/openwrt/functions.sh" "$root/lib/"
    cp "$repo/tests/ops/openwrt/rc.common" "$root/etc/"
}

inside() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "${cpu[@]}" chroot "$root" "$@"; }

# What opkg does with the package $1: the lists first, since the scripts read them. Settings that were changed stay.
install_package() {
    local upgrade=() kept=() part
    rm -rf "$work/ipk" "$work/control"
    mkdir "$work/ipk" "$work/control"
    tar -C "$work/ipk" -xzf "$1"
    expect "what is in the package" "$(tar -tzf "$1" | sort | tr '\n' ' ')" "./control.tar.gz ./data.tar.gz ./debian-binary "
    expect "its format" "$(cat "$work/ipk/debian-binary")" 2.0
    tar -C "$work/control" -xzf "$work/ipk/control.tar.gz"
    if [[ -e $info/ankipi.prerm ]]; then
        upgrade=(env PKG_UPGRADE=1)
        kept=(--exclude ./etc/config/ankipi)
        inside "${upgrade[@]}" /usr/lib/opkg/info/ankipi.prerm upgrade >&2
    fi
    tar -C "$root" -xzf "$work/ipk/data.tar.gz" "${kept[@]}"
    for part in "$work"/control/*; do cp "$part" "$info/ankipi.${part##*/}"; done
    tar -tzf "$work/ipk/data.tar.gz" | sed -n 's,^\.\(/.*[^/]\)$,\1,p' >"$info/ankipi.list"
    inside "${upgrade[@]}" /usr/lib/opkg/info/ankipi.postinst configure >"$work/said" 2>&1 || die "postinst failed: $(cat "$work/said")"
}

# The real installer; it runs the scripts inside.
install_apk() {
    local apk=${APK:-apk}
    "$apk" --version | grep -q 'apk-tools 3' || die "no apk-tools 3 here: APK=PROGRAM names one"
    mkdir -p "$root/etc/apk"
    "$apk" verify --allow-untrusted "$1" >&2
    "$apk" add --root "$root" --initdb --arch "$arch" --allow-untrusted --no-network "$1" >"$work/said" 2>&1 ||
        grep -q 'switched off' "$work/said" || die "apk add failed: $(cat "$work/said")"
    "$apk" info --root "$root" --arch "$arch" --allow-untrusted -e ankipi >/dev/null || die "apk does not know what it installed"
}

# Makes packages of the same files as version $2, for the router that is called $1, in the folder next.
next_version() {
    local target
    mkdir "$work/next"
    for target in $("$repo/cross/build.sh" --help | sed -n 's/^  \([a-z0-9_]*-unknown-[a-z-]*\) .*/\1/p'); do
        install -D "$root/usr/bin/ankipi" "$work/next/$target/ankipi"
    done
    CROSS_BUILT=1 CROSS_TARGET=$work/next OPENWRT_VERSION=$2 "$repo/cross/packages/openwrt.sh" "$1" >&2
}

field() { sed -n "s/^$1: //p" "$info/ankipi.control"; }

set_option() { sed -i "s,^\(.option $1\) .*,\1 '$2'," "$root/etc/config/ankipi"; }

wait_until_it_answers() {
    for _ in {1..200}; do
        if curl -fs "http://127.0.0.1:$1/health" >/dev/null; then return; fi
        sleep 0.1
    done
    die "the installed server does not answer"
}

install_archive() {
    tar -C "$root/tmp" -xzf "$1"
    archive=/tmp/$(ls "$root/tmp")
    inside "$archive/install.sh" >"$work/said" 2>&1 || die "install.sh failed: $(cat "$work/said")"
}

remove() {
    case $file in
        *.ipk) inside /usr/lib/opkg/info/ankipi.prerm remove ;;
        *.apk)
            "${APK:-apk}" del --root "$root" --arch "$arch" ankipi >&2
            [[ ! -e $root/usr/bin/ankipi && ! -L $root/usr/bin/anki-sync-server ]] || die "apk del left the program"
            ;;
        *) inside "$archive/install.sh" --remove >&2 ;;
    esac
}

# The kernel starts the program by its emulator, which is told of the weakest processor that it is for.
cpu=()
case ${file##*/} in
    *_aarch64_* | *-aarch64-*) register_emulator aarch64; cpu=(QEMU_CPU=cortex-a53) ;;
    *_arm_arm1176* | *-arm-*) register_emulator arm; cpu=(QEMU_CPU=arm1176) ;;
    *_arm_* | *-armv7-*) register_emulator arm; cpu=(QEMU_CPU=cortex-a7) ;;
    *_mipsel_* | *-mipsel-*) register_emulator mipsel; cpu=(QEMU_CPU=24Kc) ;;
    *_mips_* | *-mips-*) register_emulator mips; cpu=(QEMU_CPU=24Kc) ;;
    *_riscv64_* | *-riscv64gc-*) register_emulator riscv64 ;;
esac
make_root
case $file in
    *.ipk)
        install_package "$file"
        expect "the name of the file" "$(basename "$file")" "ankipi_$(field Version)_$(field Architecture).ipk"
        expect "what opkg keeps in an upgrade" "$(cat "$info/ankipi.conffiles")" /etc/config/ankipi
        ;;
    *.apk)
        arch=$(basename "$file" .apk)
        arch=${arch#*_}
        install_apk "$file"
        ;;
    *) install_archive "$file" ;;
esac
expect "mode of the settings" "$(stat -c %a "$root/etc/config/ankipi")" 600
grep -q 'switched off' "$work/said" || die "it started without being asked: $(cat "$work/said")"
[[ -L $root/etc/rc.d/S95ankipi ]] || die "the service is not enabled"
grep -q '^ankipi:' "$root/etc/passwd" || die "there is no user ankipi"

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
set_option enabled 1
set_option sync_base /mnt/stick/ankipi
set_option sync_host 127.0.0.1
set_option sync_port "$port"
inside /etc/init.d/ankipi start 2>"$work/said" && die "it started without its disk"
grep -q 'ankipi init /mnt/stick/ankipi' "$work/said" || die "it does not say what to do: $(cat "$work/said")"
[[ ! -e $root/mnt/stick/ankipi ]] || die "it began a data folder where its disk is missing"
inside /usr/bin/ankipi init /mnt/stick/ankipi >&2
inside /etc/init.d/ankipi start
wait_until_it_answers "$port"
echo secret | inside /usr/bin/ankipi user add me --config /var/etc/ankipi.conf >&2
"$repo/tests/.venv/bin/python" "$repo/cross/checks/sync.py" "http://127.0.0.1:$port/" me secret >&2
pid=$(cat "$root/var/run/ankipi.pid")
expect "who it runs as" "$(sed -n 's/^Uid:\t\([0-9]*\).*/\1/p' "/proc/$pid/status")" 32768
expect "the data folder" "$(stat -c %u:%a "$root/mnt/stick/ankipi")" 32768:700

old=$pid
case $file in
    *.ipk)
        next_version "$(field Architecture)" "$(field Version)1"
        install_package "$work"/next/*.ipk
        ;;
    *.apk)
        next_version "$arch" "$(basename "$file" "_$arch.apk" | sed 's/^ankipi-//')1"
        install_apk "$work"/next/*.apk
        cat "$work/said" >&2
        grep -q 'Upgrading ankipi' "$work/said" || die "apk did not upgrade: $(cat "$work/said")"
        ;;
    *) install_archive "$file" ;;
esac
pid=$(cat "$root/var/run/ankipi.pid")
[[ $pid != "$old" && ! -e /proc/$old ]] || die "the upgrade leaves the old server running"
grep -q "sync_port '$port'" "$root/etc/config/ankipi" || die "the upgrade took the settings"
[[ -L $root/etc/rc.d/S95ankipi ]] || die "the upgrade disabled the service"
wait_until_it_answers "$port"
"$repo/tests/.venv/bin/python" "$repo/cross/checks/sync.py" "http://127.0.0.1:$port/" me secret >&2

remove
for _ in {1..200}; do
    [[ -e /proc/$pid ]] || break
    sleep 0.1
done
[[ ! -e /proc/$pid ]] || die "removing leaves the server running"
[[ ! -L $root/etc/rc.d/S95ankipi ]] || die "removing leaves the service enabled"
[[ -s $root/mnt/stick/ankipi/users ]] || die "removing took somebody's data"
say "$file installs, starts, upgrades, and goes"
