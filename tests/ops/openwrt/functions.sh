# shellcheck shell=dash
# Stands for /lib/functions.sh of a router in cross/checks/openwrt.sh and test_packaging.py: what OpenWrt documents of the
# functions that our scripts call, for one package and one section of settings, and no more.

config_load() {
	local word name value
	# shellcheck disable=SC2034
	while read -r word name value; do
		[ "$word" = option ] || continue
		value=${value#\'}
		value=${value%\'}
		eval "uci_$name=\$value"
		option_cb "$name" "$value"
	done <"/etc/config/$1"
}

# shellcheck disable=SC2317
reset_cb() { option_cb() { return 0; }; }

config_get() { eval "$1=\"\${uci_$3:-\$4}\""; }

config_get_bool() { config_get "$@"; }

user_exists() { grep -qs "^$1:" /etc/passwd; }

# That there is a free number from 32768 on is all that matters here.
group_add_next() {
	echo "$1:x:32768:" >>/etc/group
	echo 32768
}

user_add() { echo "$1:x:${2:-32768}:$3:$1:/var/run/$1:/bin/false" >>/etc/passwd; }

# What opkg keeps of a package, and what packages for apk bring.
opkg=/usr/lib/opkg/info
apk=/lib/apk/packages

# The scripts of .apk packages call this themselves.
add_group_and_user() {
	local user
	if [ -e "$opkg/$pkgname.control" ]; then
		user=$(sed -n 's/^Require-User: *\([^:=]*\).*/\1/p' "$opkg/$pkgname.control")
	else
		user=$(cut -d: -f1 "$apk/$pkgname.rusers")
	fi
	[ -z "$user" ] || user_exists "$user" || user_add "$user" "" "$(group_add_next "$user")"
}

init_scripts_of() { cat "$opkg/$1.list" "$apk/$1.list" 2>/dev/null | grep '^/etc/init\.d/'; }

default_postinst() {
	local script
	if [ -z "$pkgname" ]; then
		local pkgname
		pkgname=$(basename "${1%.*}")
		add_group_and_user
	fi
	for script in $(init_scripts_of "$pkgname"); do
		[ "$PKG_UPGRADE" = 1 ] || "$script" enable
		"$script" start
	done
	return 0
}

default_prerm() {
	local script
	[ -n "$pkgname" ] || local pkgname
	[ -n "$pkgname" ] || pkgname=$(basename "${1%.*}")
	for script in $(init_scripts_of "$pkgname"); do
		[ "$PKG_UPGRADE" = 1 ] || "$script" disable
		"$script" stop
	done
	return 0
}
