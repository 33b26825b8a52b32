#!/bin/sh
# Certificates for your own network, without a public name: a root that you install on each device once, and a
# certificate of the server that it signs. Needs openssl (on OpenWrt: openssl-util).
#
#   certs.sh [--dir DIR] NAME...   makes both; NAME is each name and address that devices type: anki.lan 192.168.1.5
#   certs.sh [--dir DIR] renew     makes a new certificate of the server for the same names, with the same root
#
# In DIR (otherwise /etc/ankipi/certs):
#   root.crt     give this to each device
#   root.key     keep it secret; needed for `renew` only, so it may live elsewhere
#   server.crt, server.key   for nginx; server.pem, both in one file, for lighttpd and hitch
set -eu

# Apple's devices refuse certificates of a server that are valid for longer than 825 days.
SERVER_DAYS=820
ROOT_DAYS=3650

fail() {
	echo "certs.sh: $*" >&2
	exit 1
}

usage() {
	sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" | sed '/^set -eu/d'
}

dir=/etc/ankipi/certs
case ${1:-} in
-h | --help)
	usage
	exit
	;;
--dir)
	[ $# -ge 2 ] || fail "--dir needs a folder"
	dir=$2
	shift 2
	;;
esac
[ $# -ge 1 ] || fail "name what devices type, as in: certs.sh anki.lan 192.168.1.5"
command -v openssl >/dev/null || fail "openssl is missing: apt install openssl, or on OpenWrt opkg install openssl-util"
# A certificate that begins in the future is refused by every device until then, one of 1970 has expired.
[ "$(date +%Y)" -ge 2026 ] || fail "the clock says $(date): set it first"
# The root may be read by everyone, the keys by root alone.
(umask 022 && mkdir -p "$dir")
umask 077

# The names as subjectAltName wants them: addresses and names apart.
san() {
	list=
	for name in "$@"; do
		case $name in
		*[!0-9A-Za-z.:*_-]* | -*) fail "'$name' is neither a name nor an address: no https://, no port, no path" ;;
		*:*) kind=IP ;;
		*[!0-9.]*) kind=DNS ;;
		*) kind=IP ;;
		esac
		list=${list:+$list,}$kind:$name
	done
	echo "$list"
}

make_root() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days "$ROOT_DAYS" \
		-subj "/CN=ankipi root of $(hostname 2>/dev/null || echo this network)" \
		-addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
		-keyout "$dir/root.key" -out "$dir/root.crt" 2>/dev/null || fail "openssl could not make the root"
}

# The certificate of the server for these names. The old files stay until the new ones are whole.
make_server() {
	[ -r "$dir/root.key" ] || fail "$dir/root.key is missing: only with it can the root sign"
	extensions=$dir/server.ext
	printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
		"extendedKeyUsage=serverAuth" "subjectAltName=$2" "subjectKeyIdentifier=hash" "authorityKeyIdentifier=keyid" >"$extensions"
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -subj "/CN=$1" \
		-keyout "$dir/server.key.new" -out "$dir/server.csr" 2>/dev/null || fail "openssl could not make a key"
	openssl x509 -req -sha256 -days "$SERVER_DAYS" -in "$dir/server.csr" -CA "$dir/root.crt" -CAkey "$dir/root.key" \
		-set_serial "0x$(openssl rand -hex 16)" -extfile "$extensions" -out "$dir/server.crt.new" 2>/dev/null ||
		fail "openssl could not sign"
	cat "$dir/server.key.new" "$dir/server.crt.new" >"$dir/server.pem.new"
	for file in server.key server.crt server.pem; do mv "$dir/$file.new" "$dir/$file"; done
	rm -f "$dir/server.csr" "$extensions"
}

if [ "$1" = renew ]; then
	[ -r "$dir/server.crt" ] || fail "there is no certificate in $dir yet: certs.sh --dir $dir NAME..."
	names=$(openssl x509 -in "$dir/server.crt" -noout -ext subjectAltName | sed -n 's/^ *//; s/IP Address:/IP:/g; s/, /,/g; /:/p' | tail -n 1)
	first=$(openssl x509 -in "$dir/server.crt" -noout -subject | sed 's/.*CN *= *//')
	make_server "$first" "$names"
	echo "$dir/server.crt is new; devices need nothing. Let the proxy read it: systemctl reload nginx (or lighttpd, hitch)"
else
	names=$(san "$@")
	if [ ! -e "$dir/root.crt" ]; then make_root; fi
	make_server "$1" "$names"
	chmod 0644 "$dir/root.crt"
	echo "Certificate for $names, by the root in $dir/root.crt. Give root.crt to each device (with"
	echo "SYNC_ROOT_CERT=$dir/root.crt in /etc/ankipi.conf, ankipi's page at / offers it):"
	echo "  AnkiDroid: paste its text into Settings > Sync > Custom sync server > Custom root certificate"
	echo "  iPhone, iPad: open the file, install the profile, then Settings > General > About > Certificate Trust Settings"
	echo "  Windows, macOS, Linux: import it into the system's trusted root certificates"
fi
echo "It is valid until $(openssl x509 -in "$dir/server.crt" -noout -enddate | sed 's/.*=//'). Then: certs.sh --dir $dir renew"
