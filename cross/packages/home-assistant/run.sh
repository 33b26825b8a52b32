#!/bin/sh
# Makes the accounts of the add-on's options, and starts the server. /data is what Home Assistant keeps and backs up.
set -eu
umask 077
export SYNC_BASE="${SYNC_BASE:-/data/ankipi}"
options=${ANKIPI_OPTIONS:-/data/options.json}
applied=$SYNC_BASE-options
mkdir -p "$SYNC_BASE"
jq -c '.users[]' "$options" >"$applied.new"
while read -r user; do
	# A password that is set anew logs all devices out, even if it is the same.
	if grep -qxF "$user" "$applied" 2>/dev/null; then continue; fi
	name=$(printf '%s' "$user" | jq -r .name)
	password=$(printf '%s' "$user" | jq -r .password)
	printf '%s\n' "$password" | ankipi user add "$name" 2>/dev/null ||
		printf '%s\n' "$password" | ankipi user passwd "$name"
done <"$applied.new"
mv "$applied.new" "$applied"
exec ankipi
