#!/usr/bin/env bash
# Installs, upgrades, removes and purges a package in a fresh Debian, and lets real clients sync with it: cross/checks/deb.sh DEB
#
# As root on Debian; what it needs it installs (debootstrap, and qemu-user-static for another architecture). The Debian of
# the first run is kept, so that later ones are quick: CROSS_CHROOT (/var/tmp/ankipi-ARCH; 250 MB), DEBIAN_MIRROR to fetch
# it from.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=cross/shared/say.sh
source "$repo/cross/shared/say.sh"
# shellcheck source=cross/shared/emulate.sh
source "$repo/cross/shared/emulate.sh"
# shellcheck source=cross/shared/installed.sh
source "$repo/cross/shared/installed.sh"

[[ $# == 1 && -f $1 ]] || die "name a package; cross/packages/deb.sh makes one"
deb=$1
version=$(dpkg-deb -f "$deb" Version)
arch=$(dpkg-deb -f "$deb" Architecture)
cpu=()
case $arch in
    arm64) register_emulator aarch64; cpu=(QEMU_CPU=cortex-a53) ;;
    armhf) register_emulator arm; cpu=(QEMU_CPU=arm1176) ;; # for the program; Debian's own need more
    armel) register_emulator arm; cpu=(QEMU_CPU=arm926) ;;
esac
need debootstrap debootstrap
"$repo/tests/real/install"
need lintian lintian
# A static program is the point of it.
lintian --allow-root --fail-on error,warning --suppress-tags statically-linked-binary,initial-upload-closes-no-bugs "$deb"
pristine=${CROSS_CHROOT:-/var/tmp/ankipi-$arch}
work=$(mktemp -d)
root=$work/root
cleanup() {
    [[ -z $server ]] || kill "$server" 2>/dev/null || true
    umount "$root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

if [[ ! -d $pristine ]]; then
    say "making a Debian of $arch in $pristine (2 minutes, 10 for another processor)"
    debootstrap --arch="$arch" --variant=minbase --include=adduser,init-system-helpers \
        bookworm "$pristine.new" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >&2
    mv "$pristine.new" "$pristine"
fi
cp -a "$pristine" "$root"
mount -t proc proc "$root/proc"

inside() { DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$root" "$@"; }

# The same files as another version.
repack() {
    dpkg-deb -R "$deb" "$work/repacked"
    sed -i "s/^Version: .*/Version: $1/" "$work/repacked/DEBIAN/control"
    dpkg-deb --root-owner-group --build "$work/repacked" "$root/$2" >/dev/null
    rm -r "$work/repacked"
}

installed=(env "${cpu[@]}" chroot --userspec=ankipi:ankipi "$root" /usr/bin/ankipi)

link=$root/etc/systemd/system/multi-user.target.wants/ankipi.service
repack "$version+1" new.deb

# What the page says, typed by who has the package at hand.
mkdir -p "$root/root"
cp "$deb" "$root/root/"
mapfile -t lines < <(page_lines docs/install.md 'With a ')
[[ ${lines[0]} == "apt install "* && ${lines[1]} == "ankipi user add me" && ${#lines[@]} == 2 ]] || die "the page has other lines"
for line in "${lines[@]}"; do echo secret | inside sh -c "cd /root; $line" >&2; done
expect "owner of the data folder" "$(inside stat -c %U:%G:%a /var/lib/ankipi)" ankipi:ankipi:700
expect "enabled" "$(readlink "$link")" /lib/systemd/system/ankipi.service
for path in lib/systemd/system/ankipi.socket usr/share/bash-completion/completions/ankipi usr/share/man/man1/ankipi.1.gz \
    usr/share/doc/ankipi/README.md usr/share/doc/ankipi/proxy/nginx.conf usr/share/doc/ankipi/fail2ban/jail.d/ankipi.conf; do
    [[ -e $root/$path ]] || die "the package lacks $path"
done
[[ -z $(find "$root/etc/systemd/system" -name ankipi.socket) ]] || die "the package enables its socket, too"
env "${cpu[@]}" chroot "$root" /usr/bin/anki-sync-server --version >&2
start "${installed[@]}" serve --config /etc/ankipi.conf
stop

echo 'SYNC_BACKUPS=7' >>"$root/etc/ankipi.conf"
rm "$link" # what `systemctl disable` does
inside dpkg -i /new.deb >&2
# shellcheck disable=SC2016  # dpkg-query's own
expect "version" "$(inside dpkg-query -W -f '${Version}' ankipi)" "$version+1"
expect "the administrator's setting" "$(grep -c SYNC_BACKUPS=7 "$root/etc/ankipi.conf")" 1
[[ ! -L $link ]] || die "the upgrade enabled a disabled service"
start "${installed[@]}" serve --config /etc/ankipi.conf
stop

inside dpkg -r ankipi >&2
[[ ! -e $root/usr/bin/ankipi && -e $root/etc/ankipi.conf ]] || die "removing left the program, or took the settings"
mkdir -p "$root/usr/local/bin"
touch "$root/usr/local/bin/ankipi" # of an earlier install.sh
inside dpkg -i /new.deb >"$work/said" 2>&1
grep -q 'type: rm /usr/local/bin/ankipi &&' "$work/said" || die "it does not tell what goes before it: $(cat "$work/said")"
rm "$root/usr/local/bin/ankipi"
start "${installed[@]}" serve --config /etc/ankipi.conf
stop
inside dpkg -P ankipi >&2
[[ ! -e $root/etc/ankipi.conf ]] || die "purging left the settings"
[[ -s $root/var/lib/ankipi/users ]] || die "purging took somebody's data"
left=$(find "$root/etc/systemd" "$root/var/lib/systemd" -name '*ankipi*')
expect "what systemd still knows" "$left" ""
say "$deb installs, starts, upgrades, and goes"
