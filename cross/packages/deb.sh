#!/usr/bin/env bash
# Makes Debian packages, without Docker: cross/packages/deb.sh ARCH...
#
# ARCH is arm64, armhf, armel, amd64, i386 or riscv64; the result is CROSS_TARGET/ankipi_*.deb. armhf is for ARMv6 with hard
# float, as Raspberry Pi OS means it, and so runs on every Pi. Builds the program first (cross/build.sh). Needs dpkg-deb.
set -euo pipefail
# shellcheck source=cross/packages/common.sh
source "$(dirname "$0")/common.sh"

target_of() {
    case $1 in
        arm64) echo aarch64-unknown-linux-musl ;;
        armhf) echo arm-unknown-linux-musleabihf ;;
        armel) echo armv5te-unknown-linux-musleabi ;;
        amd64) echo x86_64-unknown-linux-musl ;;
        i386) echo i686-unknown-linux-musl ;;
        riscv64) echo riscv64gc-unknown-linux-musl ;;
        *) die "$1 is not an architecture: arm64, armhf, armel, amd64, i386 or riscv64" ;;
    esac
}

copyright() {
    cat <<'END'
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: ankipi

Files: *
Copyright: the ankipi authors
License: Expat or Apache-2.0

License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.

License: Expat
END
    # The text, indented, and a dot for each empty line.
    sed 's/^$/./; s/^/ /' LICENSE-MIT
}

# Which commit the package is of; what changed for its user is in changelog.gz.
debian_changelog() {
    printf 'ankipi (%s) stable; urgency=medium\n\n  * Commit %s; see changelog.gz.\n\n -- %s  %s\n' \
        "$revision" "$(git rev-parse --short HEAD)" "$(maintainer)" "$(date -uR -d "@$SOURCE_DATE_EPOCH")"
}

control() {
    cat <<END
Package: ankipi
Version: $revision
Architecture: $1
Maintainer: $(maintainer)
Installed-Size: $2
Depends: adduser, init-system-helpers (>= 1.54~)
Section: net
Priority: optional
Suggests: fail2ban, nginx | caddy
Description: sync server for Anki that fits small boards
 Anki desktop, AnkiDroid and AnkiMobile sync their cards and media with it
 instead of AnkiWeb. It is one static program with a data folder, and needs a
 few MB of memory whatever the size of the collections.
END
}

# The unit with a user that stays, so that its folder can be looked after with the service stopped.
service() { sed '1,2d; s/^DynamicUser=yes$/User=ankipi/' cross/init/systemd/ankipi.service; }

# Fills the folder $2 with what the package for $1 installs.
fill() {
    local root=$2 doc=$2/usr/share/doc/ankipi
    install -D -m 755 -t "$root/usr/bin" "$out/$(target_of "$1")/ankipi"
    # Units and modules that were written for Anki's own server start this one.
    ln -s ankipi "$root/usr/bin/anki-sync-server"
    install -D -m 644 cross/init/ankipi.conf "$root/etc/ankipi.conf"
    service >"$work/ankipi.service"
    install -D -m 644 "$work/ankipi.service" "$root/lib/systemd/system/ankipi.service"
    install -D -m 644 cross/init/systemd/ankipi.socket "$root/lib/systemd/system/ankipi.socket"
    sed -i 1d "$root/lib/systemd/system/ankipi.socket"
    install -D -m 644 cross/completion/ankipi.bash "$root/usr/share/bash-completion/completions/ankipi"
    install -d "$root/usr/share/man/man1"
    gzip -9n <cross/man/ankipi.1 >"$root/usr/share/man/man1/ankipi.1.gz"
    chmod 644 "$root/usr/share/man/man1/ankipi.1.gz"
    ln -s ankipi.1.gz "$root/usr/share/man/man1/anki-sync-server.1.gz"
    install -d "$doc" "$root/DEBIAN"
    copyright >"$doc/copyright"
    gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
    debian_changelog | gzip -9n >"$doc/changelog.Debian.gz"
    cp -r cross/packages/README.md cross/proxy cross/fail2ban "$doc"
    chmod -R u=rwX,go=rX "$doc"
    control "$1" "$(du -sk "$root" | cut -f1)" >"$root/DEBIAN/control"
    echo /etc/ankipi.conf >"$root/DEBIAN/conffiles"
    install -m 755 cross/packages/deb/{postinst,prerm,postrm} "$root/DEBIAN"
}

package() {
    local work root deb=$out/ankipi_${revision}_$1.deb
    work=$(mktemp -d)
    root=$work/root
    fill "$1" "$root"
    # The folder and its parents must be everybody's to read, whatever the umask here.
    find "$root" -type d -exec chmod 755 {} +
    dpkg-deb --root-owner-group --build "$root" "$deb.new" >/dev/null
    rm -r "$work"
    finish "$deb"
}

[[ $# -gt 0 ]] || die "name an architecture: arm64, armhf, armel, amd64, i386 or riscv64"
for arch; do target_of "$arch" >/dev/null; done
revision=${DEB_VERSION:-$(version)-1}
for arch; do
    build_for "$(target_of "$arch")"
    package "$arch"
done
