# shellcheck shell=bash
# What the scripts that make packages share; sourced.
# shellcheck source=cross/build.sh
source "$(dirname "${BASH_SOURCE[0]}")/../build.sh"
cd "$repo"

# Packages tell which commit they are of, and are the same bytes for the same commit and tools.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

version() { sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1; }

maintainer() { echo "${MAINTAINER:-$(git log -1 --format='%an <%ae>')}"; }

# Builds for target $1, unless cross/release.sh has; the variables of a cross build stay in there.
build_for() {
    if [[ ! ${CROSS_BUILT:-} ]]; then (prepare_tools; build "$1"); fi
}

# pack FOLDER NAME...: a tar.gz of what FOLDER holds under these names, for standard output.
pack() {
    tar -C "$1" --format=gnu --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -c "${@:2}" | gzip -9n
}

# Puts the finished file $1.new in its place.
finish() {
    mv "$1.new" "$1"
    printf '%9d bytes  %s\n' "$(stat -c %s "$1")" "$1"
}
