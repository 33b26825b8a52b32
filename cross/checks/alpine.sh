#!/usr/bin/env bash
# Makes a package of Alpine's recipe around a static program, installs it by apk in a root of its own, lets real clients sync with it,
# upgrades it, and removes it: cross/checks/alpine.sh PROGRAM
#
# PROGRAM runs on this machine. As root on Debian. abuild, which would compile and pack, is not to be had there: this does with
# apk-tools 3 (APK names the program) what it does with the recipe, in one package instead of four.
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
apk=${APK:-apk}
"$apk" --version | grep -q 'apk-tools 3' || die "no apk-tools 3 here: APK=PROGRAM names one"
need busybox busybox-static
"$repo/tests/real/install"
work=$(mktemp -d)
root=$work/root
recipe=$repo/cross/packages/alpine
cleanup() {
    [[ -z $server ]] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
chmod 755 "$work"

# make_package RELEASE: the package with that pkgrel.
make_package() {
    (
        set -e
        # shellcheck disable=SC2034  # the recipe's
        srcdir=$work/src pkgdir=$work/files
        # shellcheck source=/dev/null
        source "$recipe/APKBUILD"
        # shellcheck disable=SC2154  # the recipe's
        mkdir -p "$builddir" "$pkgdir"
        git -C "$repo" archive HEAD | tar -x -C "$builddir"
        install -D "$program" "$builddir/target/release/ankipi"
        cd "$builddir"
        package
        # shellcheck disable=SC2154
        "$apk" mkpkg --info "name:$pkgname" --info "version:$pkgver-r$1" --info "arch:$(uname -m)" --info "license:$license" \
            --info "description:$pkgdesc" --info "url:$url" --script "pre-install:$recipe/ankipi.pre-install" \
            --files "$pkgdir" --output "$work/$1.apk"
    )
    rm -r "$work/src" "$work/files"
}

apk_in_root() { "$apk" --root "$root" --arch "$(uname -m)" --allow-untrusted --no-network "$@" >&2; }

installed=(chroot --userspec=ankipi:ankipi "$root" /usr/bin/ankipi)

make_package 0
make_package 1
mkdir -p "$root"/{bin,sbin,etc/apk,tmp,dev,usr/bin,usr/sbin,var/lib}
cp "$(command -v busybox)" "$root/bin/"
chroot "$root" /bin/busybox --install -s
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/null" c 1 3
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
# Alpine's busybox makes users, Debian's does not.
{
    echo '#!/bin/sh' && echo 'echo "ankipi:x:100:" >>/etc/group'
} >"$root/usr/sbin/addgroup"
{
    echo '#!/bin/sh' && echo 'echo "ankipi:x:100:100::/var/lib/ankipi:/sbin/nologin" >>/etc/passwd'
} >"$root/usr/sbin/adduser"
chmod +x "$root"/usr/sbin/add{group,user}
apk_in_root add --initdb "$work/0.apk"
grep -q '^ankipi:' "$root/etc/passwd" || die "there is no user ankipi"
install -d -m 700 -o 100 -g 100 "$root/var/lib/ankipi" # OpenRC's checkpath does it
echo secret | "${installed[@]}" user add me --config /etc/conf.d/ankipi >&2
start "${installed[@]}" --config /etc/conf.d/ankipi
stop

echo 'SYNC_BACKUPS=7' >>"$root/etc/conf.d/ankipi"
apk_in_root add "$work/1.apk"
expect "version" "$("$apk" --root "$root" --arch "$(uname -m)" query --installed --fields version ankipi | sed -n 's/.*-//p')" r1
expect "the owner's setting" "$(grep -c SYNC_BACKUPS=7 "$root/etc/conf.d/ankipi")" 1
start "${installed[@]}" --config /etc/conf.d/ankipi
stop

apk_in_root del --purge ankipi
[[ ! -e $root/usr/bin/ankipi && ! -L $root/usr/bin/anki-sync-server && ! -e $root/etc/conf.d/ankipi ]] || die "removing left files"
[[ -s $root/var/lib/ankipi/users ]] || die "removing took somebody's data"
say "Alpine's package installs, starts, upgrades, and goes"
