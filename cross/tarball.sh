#!/usr/bin/env bash
# Makes an archive with program, settings, unit and install.sh for each target: cross/tarball.sh TARGET...
#
# cross/build.sh --help lists the targets; the archive is CROSS_TARGET/ankipi-VERSION-TARGET.tar.gz, the same bytes for
# the same commit and tools.
set -euo pipefail
# shellcheck source=cross/build.sh
source "$(dirname "$0")/build.sh"
cd "$repo"

pack() {
    local name=ankipi-$version-$1 work
    work=$(mktemp -d)
    mkdir "$work/$name"
    cp "$out/$1/ankipi" cross/install.sh cross/ankipi.conf cross/init/systemd/ankipi.service cross/man/ankipi.1 README.md CHANGELOG.md LICENSE-* "$work/$name"
    tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
        --mtime="@$(git log -1 --format=%ct)" -c "$name" | gzip -9n >"$out/$name.tar.gz.new"
    rm -r "$work"
    mv "$out/$name.tar.gz.new" "$out/$name.tar.gz"
    printf '%9d bytes  %s\n' "$(stat -c %s "$out/$name.tar.gz")" "$out/$name.tar.gz"
}

[[ $# -gt 0 ]] || die "name a target; cross/build.sh --help lists them"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
for target; do
    (prepare_tools && build "$target")
    pack "$target"
done
