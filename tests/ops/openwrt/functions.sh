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

config_get() { eval "$1=\"\${uci_$3:-\$4}\""; }

config_get_bool() { config_get "$@"; }

user_exists() { grep -qs "^$1:" /etc/passwd; }

# That there is a free number from 32768 on is all that matters here.
group_add_next() {
	echo "$1:x:32768:" >>/etc/group
	echo 32768
}

user_add() { echo "$1:x:${2:-32768}:$3:$1:/var/run/$1:/bin/false" >>/etc/passwd; }

add_users_of() {
	local user
	user=$(sed -n 's/^Require-User: *\([^:=]*\).*/\1/p' "/usr/lib/opkg/info/$1.control")
	[ -z "$user" ] || user_exists "$user" || user_add "$user" "" "$(group_add_next "$user")"
}

init_scripts_of() { grep '^/etc/init\.d/' "/usr/lib/opkg/info/$1.list"; }

default_postinst() {
	local package script
	package=$(basename "${1%.*}")
	add_users_of "$package"
	for script in $(init_scripts_of "$package"); do
		[ "$PKG_UPGRADE" = 1 ] || "$script" enable
		"$script" start
	done
	return 0
}

default_prerm() {
	local package script
	package=$(basename "${1%.*}")
	for script in $(init_scripts_of "$package"); do
		[ "$PKG_UPGRADE" = 1 ] || "$script" disable
		"$script" stop
	done
	return 0
}
