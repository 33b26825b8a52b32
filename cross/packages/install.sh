#!/bin/sh
# Installs ankipi from the folder this lies in, on any Linux: the program, settings unless there are some, a service for
# systemd, OpenWrt, OpenRC or sysvinit, whichever is here, and but on OpenWrt man page and completion. Run it as root,
# again for an update.
#
#   ./install.sh            install or update, and start
#   ./install.sh --remove   take away the program and the service; settings and data stay
#   DESTDIR=DIR ./install.sh  put the files below DIR only: no user, no start
set -eu
cd "$(dirname "$0")"
root=${DESTDIR:-}

say() { echo "ankipi: $*"; }
die() { say "$*" >&2; exit 1; }

# A service in /etc/init.d can belong to OpenWrt, OpenRC or sysvinit: each is recognised by files of its own.
if [ -e "$root/etc/rc.common" ]; then
    init=openwrt service=$root/etc/init.d/ankipi settings=$root/etc/config/ankipi
elif [ -e "$root/sbin/openrc-run" ]; then
    init=openrc service=$root/etc/init.d/ankipi settings=$root/etc/conf.d/ankipi
elif [ -d "$root/etc/init.d" ] && [ ! -d "$root/run/systemd/system" ] && { [ -z "$root" ] || [ ! -d "$root/lib/systemd" ]; }; then
    init=sysvinit service=$root/etc/init.d/ankipi settings=$root/etc/ankipi.conf
else
    init=systemd service=$root/etc/systemd/system/ankipi.service settings=$root/etc/ankipi.conf
fi
# Init scripts look in /usr/bin, where a router has no other place.
case $init in
    systemd) prefix=$root/usr/local ;;
    *) prefix=$root/usr ;;
esac
program=$prefix/bin/ankipi
# The name of Anki's own server, for units and modules that were written for that.
alias=$prefix/bin/anki-sync-server
man=$prefix/share/man/man1/ankipi.1
completion=$prefix/share/bash-completion/completions/ankipi
rotation=$root/etc/logrotate.d/ankipi
socket=$root/etc/systemd/system/ankipi.socket

# Whether the service can be started now: not below DESTDIR, and not if systemd is installed but not running.
live() { [ -z "$root" ] && { [ $init != systemd ] || [ -d /run/systemd/system ]; }; }

enable_and_start() {
    case $init in
        systemd)
            systemctl daemon-reload
            systemctl enable ankipi
            systemctl restart ankipi
            ;;
        openrc)
            rc-update add ankipi
            rc-service ankipi restart
            ;;
        openwrt)
            /etc/init.d/ankipi enable
            /etc/init.d/ankipi restart
            ;;
        sysvinit)
            if command -v update-rc.d >/dev/null; then update-rc.d ankipi defaults; fi
            /etc/init.d/ankipi restart
            ;;
    esac
}

stop_and_disable() {
    case $init in
        systemd) systemctl disable --now ankipi.socket ankipi.service || true ;;
        openrc)
            rc-service ankipi stop || true
            rc-update del ankipi || true
            ;;
        openwrt)
            /etc/init.d/ankipi stop || true
            /etc/init.d/ankipi disable || true
            ;;
        sysvinit) /etc/init.d/ankipi stop || true ;;
    esac
}

remove() {
    if live && [ -e "$service" ]; then stop_and_disable; fi
    rm -f "$service" "$program" "$man" "$completion" "$rotation" "$socket"
    if [ "$(readlink "$alias")" = ankipi ]; then rm "$alias"; fi
    if live; then
        case $init in
            systemd) systemctl daemon-reload ;;
            sysvinit) if command -v update-rc.d >/dev/null; then update-rc.d ankipi remove; fi ;;
        esac
    fi
    say "removed; settings are in $settings, and the collections where they were"
}

add_user() {
    if id ankipi >/dev/null 2>&1; then return; fi
    if [ $init = openwrt ]; then
        # Routers have no program for it.
        # shellcheck source=/dev/null
        (set +eu && . /lib/functions.sh && user_add ankipi "" "$(group_add_next ankipi)")
    elif command -v useradd >/dev/null; then
        useradd --system --user-group --home-dir /var/lib/ankipi --shell /usr/sbin/nologin ankipi
    else
        adduser -S -D -H -h /var/lib/ankipi -s /sbin/nologin ankipi # busybox
    fi
}

put_service() {
    case $init in
        systemd)
            sed '1,2d; s,/usr/bin/ankipi,/usr/local/bin/ankipi,; s/^DynamicUser=yes$/User=ankipi/' init/systemd/ankipi.service >"$service"
            cp init/systemd/ankipi.socket "$socket"
            ;;
        openwrt) cp init/openwrt/ankipi.init "$service" ;;
        *) cp "init/$init/ankipi" "$service" ;;
    esac
    [ $init = systemd ] || chmod 755 "$service"
}

put_settings() {
    [ ! -e "$settings" ] || return 0
    case $init in
        openwrt) cp init/openwrt/ankipi.config "$settings" ;;
        openrc) cp init/openrc/ankipi.confd "$settings" ;;
        *) cp init/ankipi.conf "$settings" ;;
    esac
    # As all of a router's settings; its init script reads it as root.
    if [ $init = openwrt ]; then chmod 600 "$settings"; else chmod 644 "$settings"; fi
}

# put FROM TO: a file for everybody to read.
put() {
    mkdir -p "$(dirname "$2")"
    cp "$1" "$2"
    chmod 644 "$2"
}

put_extras() {
    [ -e "$alias" ] || ln -s ankipi "$alias"
    if [ $init = openwrt ]; then return; fi # flash is small, and there is no man
    put ankipi.1 "$man"
    put ankipi.bash "$completion"
    case $init in openrc | sysvinit) put init/logrotate/ankipi "$rotation" ;; esac
}

[ -n "$root" ] || [ "$(id -u)" = 0 ] || die "run this as root: sudo ./install.sh"
case ${1:-} in
    "") ;;
    --remove) remove; exit ;;
    *) die "$1 is not an option; there is --remove" ;;
esac
# Files below DESTDIR may be for another machine.
[ -n "$root" ] || ./ankipi --version >/dev/null || die "this archive is for another processor"

mkdir -p "$(dirname "$program")" "$(dirname "$service")" "$(dirname "$settings")"
# A running program cannot be overwritten, but it can be replaced by a rename.
cp ankipi "$program.new"
chmod 755 "$program.new"
mv "$program.new" "$program"
put_settings
put_service
put_extras
# On a router the data belongs on a stick, which the settings name.
if [ $init != openwrt ]; then
    # Whose disk may not be mounted is not begun anew in an update.
    [ -e "$root/var/lib/ankipi" ] || is_first=1
    mkdir -p "$root/var/lib/ankipi"
    chmod 700 "$root/var/lib/ankipi"
fi
if [ -z "$root" ]; then
    add_user
    [ $init = openwrt ] || chown ankipi: /var/lib/ankipi
    [ -z "${is_first:-}" ] || "$program" init /var/lib/ankipi
fi
if live; then
    enable_and_start || say "the service did not start: see above"
else
    say "nothing is started; by hand, as user ankipi: ${program#"$root"} serve --config ${settings#"$root"}"
fi
case $init in
    openwrt) say "installed; set data folder and switch in $settings, then ankipi init DATA_FOLDER and service ankipi start" ;;
    *) say "installed; make an account, as root: ankipi user add NAME" ;;
esac
