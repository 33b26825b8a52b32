source "$(dirname "$0")/build.sh"; cd "$repo"; prepare_tools; prepare_target arm-unknown-linux-musleabihf
time CARGO_TARGET_ARM_UNKNOWN_LINUX_MUSLEABIHF_RUNNER="qemu-arm-static -cpu arm1176" cargo-zigbuild test --locked --target arm-unknown-linux-musleabihf -Zbuild-std --lib -- --quiet
