#!/usr/bin/env bash
# Makes a package of Arch's recipe around a static program, installs it by pacman in a root of its own, lets real clients sync with
# it, upgrades it, and removes it: cross/checks/arch.sh PROGRAM
#
# PROGRAM runs on this machine. makepkg would compile one here for Arch's own libraries; all but that is what makepkg does. As
# root on Debian, it installs makepkg, pacman and systemd-sysusers. namcap is in no package of Debian or PyPI.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=cross/shared/say.sh
source "$repo/cross/shared/say.sh"
# shellcheck source=cross/shared/emulate.sh
source "$repo/cross/shared/emulate.sh"
# shellcheck source=cross/shared/installed.sh
source "$repo/cross/shared/installed.sh"

[[ $# == 1 && -f $1 ]] || die "name a program; cross/build.sh makes one"
program=$1
need makepkg makepkg
need pacman pacman-package-manager
need systemd-sysusers systemd-standalone-sysusers
"$repo/tests/real/install"
work=$(mktemp -d)
root=$work/root
cleanup() {
    [[ -z $server ]] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
chmod 755 "$work"

# make_package RELEASE: the package with that pkgrel.
make_package() {
    local build=$work/build-$1 source
    cp -r "$repo/cross/packages/arch" "$build"
    sed -i "s/^pkgrel=.*/pkgrel=$1/" "$build/PKGBUILD"
    # shellcheck source=/dev/null disable=SC2154  # it sets them
    source=$build/src/$(source "$build/PKGBUILD" && echo "$pkgname-$pkgver")
    mkdir -p "$source"
    git -C "$repo" archive HEAD | tar -x -C "$source"
    install -D "$program" "$source/target/release/ankipi"
    chown -R nobody "$build"
    (cd "$build" && setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME="$build" PKGEXT=.pkg.tar.gz \
        makepkg --repackage --nodeps --ignorearch) >"$work/said" 2>&1 || die "makepkg failed: $(cat "$work/said")"
    if grep -E 'ERROR|WARNING' "$work/said" | grep -v 'Skipping dependency checks'; then die "makepkg complains"; fi
    mv "$build"/*.pkg.tar.gz "$work/$1.pkg.tar.gz"
}

# Nothing is asked, no signature is wanted, and what the package depends on is not in this root.
pacman_in_root() { pacman --root "$root" --config "$work/pacman.conf" --noconfirm "$@" >&2; }

installed=(chroot --userspec=ankipi:ankipi "$root" /usr/bin/ankipi)

make_package 1
make_package 2
mkdir -p "$root"/{etc,tmp,dev,var/lib/pacman}
mknod -m 666 "$root/dev/urandom" c 1 9
printf '[options]\nArchitecture = auto\nSigLevel = Never\n' >"$work/pacman.conf"
pacman_in_root --upgrade --nodeps --nodeps "$work/1.pkg.tar.gz"
pacman_in_root --query --check ankipi
systemd-sysusers --root="$root" # Arch's own hook calls it
for path in usr/lib/systemd/system/ankipi.socket usr/share/man/man1/ankipi.1.gz usr/share/licenses/ankipi/LICENSE-MIT; do
    [[ -e $root/$path ]] || die "the package lacks $path"
done
install -d -m 700 "$root/var/lib/ankipi" # systemd makes it
chown "$(sed -n 's/^ankipi:x:\([0-9]*\):\([0-9]*\):.*/\1:\2/p' "$root/etc/passwd")" "$root/var/lib/ankipi"
echo secret | "${installed[@]}" user add me --config /etc/ankipi.conf >&2
start "${installed[@]}" serve --config /etc/ankipi.conf
stop

echo 'SYNC_BACKUPS=7' >>"$root/etc/ankipi.conf"
pacman_in_root --upgrade --nodeps --nodeps "$work/2.pkg.tar.gz"
expect "version" "$(pacman --root "$root" --config "$work/pacman.conf" --query ankipi | sed 's/.*-//')" 2
expect "the owner's setting" "$(grep -c SYNC_BACKUPS=7 "$root/etc/ankipi.conf")" 1
start "${installed[@]}" serve --config /etc/ankipi.conf
stop

pacman_in_root --remove --nosave ankipi
[[ ! -e $root/usr/bin/ankipi && ! -L $root/usr/bin/anki-sync-server && ! -e $root/etc/ankipi.conf ]] || die "removing left files"
[[ -s $root/var/lib/ankipi/users ]] || die "removing took somebody's data"
say "Arch's package installs, starts, upgrades, and goes"
