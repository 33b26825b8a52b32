#!/bin/sh
# Makes the accounts of the add-on's options, and starts the server. /data is what Home Assistant keeps and backs up.
set -eu
export SYNC_BASE="${SYNC_BASE:-/data/ankipi}"
options=${ANKIPI_OPTIONS:-/data/options.json}
mkdir -p "$SYNC_BASE"
count=$(jq '.users | length' "$options")
index=0
while [ "$index" -lt "$count" ]; do
	name=$(jq -r ".users[$index].name" "$options")
	password=$(jq -r ".users[$index].password" "$options")
	# A new account, or a new password for one that there is. An unchanged password is set again: devices stay logged in.
	printf '%s\n' "$password" | ankipi user add "$name" >/dev/null 2>&1 ||
		printf '%s\n' "$password" | ankipi user passwd "$name"
	index=$((index + 1))
done
exec ankipi
