#!/usr/bin/env bash
# Makes container images, without Docker: cross/packages/image.sh [PLATFORM...]
#
# PLATFORM is arm64, amd64, armv7, armv6 or riscv64 (all of them without one); CROSS_TARGET/ankipi-VERSION-image-PLATFORM.tar
# is for `docker load` and `podman load`, and -image-all.tar for a registry: skopeo copy --all oci-archive:FILE docker://NAME.
# Builds the programs first (cross/build.sh). cross/packages/image/ has files for compose and quadlet.
set -euo pipefail
# shellcheck source=cross/packages/common.sh
source "$(dirname "$0")/common.sh"

target_of() {
    case $1 in
        arm64) echo aarch64-unknown-linux-musl ;;
        amd64) echo x86_64-unknown-linux-musl ;;
        armv7) echo armv7-unknown-linux-musleabihf ;;
        armv6) echo arm-unknown-linux-musleabihf ;;
        riscv64) echo riscv64gc-unknown-linux-musl ;;
        *) die "$1 is not a platform: arm64, amd64, armv7, armv6 or riscv64" ;;
    esac
}

[[ $# -gt 0 ]] || set -- arm64 amd64 armv7 armv6 riscv64
for platform; do target_of "$platform" >/dev/null; done
programs=()
for platform; do
    target=$(target_of "$platform")
    build_for "$target"
    # As the specification writes it: arm/v6.
    programs+=("linux/${platform/armv/arm/v}=$out/$target/ankipi")
done
python3 cross/packages/image/make.py --version "$(version)" --revision "$(git rev-parse HEAD)" --epoch "$SOURCE_DATE_EPOCH" \
    --out "$out" "${programs[@]}"
