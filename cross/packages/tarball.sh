#!/usr/bin/env bash
# Makes archives for each target: cross/packages/tarball.sh TARGET...   (cross/build.sh --help lists them)
#
# CROSS_TARGET/ankipi-VERSION-TARGET.tar.gz holds program, services, settings, man page and install.sh, and
# CROSS_TARGET/ankipi-bench-VERSION-TARGET.tar.gz the benchmark: the same bytes for the same commit and tools.
set -euo pipefail
# shellcheck source=cross/packages/common.sh
source "$(dirname "$0")/common.sh"

# archive NAME FILE...: an archive with the folder NAME.
archive() {
    local name=$1 work
    work=$(mktemp -d)
    mkdir "$work/$name"
    cp -r "${@:2}" CHANGELOG.md LICENSE-* "$work/$name"
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
    archive "ankipi-$(version)-$target" "$out/$target/ankipi" cross/packages/{install.sh,README.md} \
        cross/{init,proxy,fail2ban} cross/man/ankipi.1 cross/completion/ankipi.bash
    archive "ankipi-bench-$(version)-$target" "$out/$target/ankipi-bench"
done
