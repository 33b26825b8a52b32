#!/usr/bin/env bash
# Makes an archive with program, benchmark, settings, services and install.sh for each target: cross/packages/tarball.sh TARGET...
#
# cross/build.sh --help lists the targets; the archive is CROSS_TARGET/ankipi-VERSION-TARGET.tar.gz, the same bytes for
# the same commit and tools.
set -euo pipefail
# shellcheck source=cross/packages/common.sh
source "$(dirname "$0")/common.sh"

archive() {
    local name work
    name=ankipi-$(version)-$1
    work=$(mktemp -d)
    mkdir "$work/$name"
    cp -r "$out/$1"/ankipi{,-bench} cross/packages/install.sh cross/init cross/man/ankipi.1 "$work/$name"
    cp README.md CHANGELOG.md LICENSE-* "$work/$name"
    chmod -R u=rwX,go=rX "$work/$name"
    pack "$work" "$name" >"$out/$name.tar.gz.new"
    rm -r "$work"
    finish "$out/$name.tar.gz"
}

[[ $# -gt 0 ]] || die "name a target; cross/build.sh --help lists them"
for target; do is_target "$target" || die "$target is not a target; cross/build.sh --help lists them"; done
bench=1
for target; do
    build_for "$target"
    archive "$target"
done
