#!/bin/sh
# Installs ankipi from the folder this lies in, on Linux with systemd: the program into /usr/local/bin, the settings into
# /etc/ankipi.conf unless there are some, the user ankipi, the service. Run it as root, again for an update.
#
#   ./install.sh            install or update, and start
#   ./install.sh --remove   take away the program and the service; settings and data stay
#   DESTDIR=DIR ./install.sh  put the files below DIR only: no user, no start
set -eu
cd "$(dirname "$0")"
root=${DESTDIR:-}
unit=$root/etc/systemd/system/ankipi.service

say() { echo "ankipi: $*"; }
die() { say "$*" >&2; exit 1; }

systemd() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

remove() {
    if systemd; then systemctl disable --now ankipi || true; fi
    rm -f "$unit" "$root/usr/local/bin/ankipi"
    if systemd; then systemctl daemon-reload; fi
    say "removed; settings are in $root/etc/ankipi.conf, collections in $root/var/lib/ankipi"
}

add_user() {
    if id ankipi >/dev/null 2>&1; then return; fi
    if command -v useradd >/dev/null; then
        useradd --system --user-group --home-dir /var/lib/ankipi --shell /usr/sbin/nologin ankipi
    else
        adduser -S -D -H -h /var/lib/ankipi -s /sbin/nologin ankipi # busybox
    fi
}

[ -n "$root" ] || [ "$(id -u)" = 0 ] || die "run this as root: sudo ./install.sh"
case ${1:-} in
    "") ;;
    --remove) remove; exit ;;
    *) die "$1 is not an option; there is --remove" ;;
esac
# Files below DESTDIR may be for another machine.
[ -n "$root" ] || ./ankipi --version >/dev/null || die "this archive is for another processor"

mkdir -p "$root/usr/local/bin" "$root/var/lib/ankipi" "$(dirname "$unit")"
# A running program cannot be overwritten, but replaced.
cp ankipi "$root/usr/local/bin/ankipi.new"
chmod 755 "$root/usr/local/bin/ankipi.new"
mv "$root/usr/local/bin/ankipi.new" "$root/usr/local/bin/ankipi"
[ -e "$root/etc/ankipi.conf" ] || cp ankipi.conf "$root/etc/ankipi.conf"
sed '1,2d; s,/usr/bin/ankipi,/usr/local/bin/ankipi,; s/^DynamicUser=yes$/User=ankipi/' ankipi.service >"$unit"
chmod 700 "$root/var/lib/ankipi"
chmod 644 "$root/etc/ankipi.conf" "$unit"
if [ -z "$root" ]; then
    add_user
    chown ankipi: /var/lib/ankipi
fi
if systemd; then
    systemctl daemon-reload
    systemctl enable ankipi
    systemctl restart ankipi
    say "it runs; make an account: sudo -u ankipi ankipi user add NAME --base /var/lib/ankipi"
else
    say "installed; start it from your init as user ankipi: /usr/local/bin/ankipi serve --config /etc/ankipi.conf"
fi
