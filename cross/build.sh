#!/usr/bin/env bash
# Builds ankipi for boards, without Docker: cross/build.sh [--bench] TARGET...   (no TARGET: the list)
#
# std is built from its sources for each target and zig links, so any target of the list works on any x86-64 or arm64
# machine with Python 3, cargo, and a rustc that has its own sources (`rustup component add rust-src`). Where rustc has
# none, a compiler with sources is taken from Debian 12's security archive (rustc-web) into the tools folder; nothing is
# installed on the system.
#
#   CROSS_TOOLS   where the tools go (cross/.tools; 1.4 GB with Debian's compiler)
#   CROSS_TARGET  where the builds go (target/cross); each ends as CROSS_TARGET/TARGET/ankipi
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=${CROSS_TOOLS:-$repo/cross/.tools}
out=${CROSS_TARGET:-$repo/target/cross}
# No program may be larger: routers have little flash.
max_bytes=3145728
# Pinned: a linker is part of what is tested. zig 0.17.1 replaces the malloc of musl by one of its own, which
# does not use memory again that one thread took and another freed: 45 MB in half an hour of syncs.
zig_version=0.15.2
zig_packages="ziglang==$zig_version cargo-zigbuild==0.24.0"

# shellcheck source=cross/shared/say.sh
source "$repo/cross/shared/say.sh"

usage() {
    sed -n '2,11s/^# \?//p' "$0"
    cat <<'END'

Targets:
  aarch64-unknown-linux-musl       Pi 3, 4, 5 and Zero 2 with a 64-bit system; most new routers
  armv7-unknown-linux-musleabihf   Pi 2, 3, 4 with a 32-bit system
  arm-unknown-linux-musleabihf     Pi Zero, Zero W, 1 (ARMv6, hard float)
  armv5te-unknown-linux-musleabi   ARM without FPU: Kirkwood NAS boxes, routers with BCM4708 and 4709
  mips-unknown-linux-musl          big-endian routers: ath79, mips_24kc
  mipsel-unknown-linux-musl        routers with MT7620, MT7621, MT76x8
  riscv64gc-unknown-linux-musl     VisionFive 2, Milk-V and other 64-bit RISC-V boards
  x86_64-unknown-linux-musl        any PC
  i686-unknown-linux-musl          32-bit PCs and thin clients, from the Pentium 4 on

  --bench    build the benchmark for the board, too: CROSS_TARGET/TARGET/ankipi-bench
END
}

is_target() { usage | grep -qF "  $1 "; }

# Whether version $1 of Rust can build this.
is_new_enough() {
    local least
    least=$(sed -n 's/^rust-version = "\(.*\)".*/\1/p' "$repo/Cargo.toml")
    [[ $1 && $(printf '%s\n' "$least" "$1" | sort -V | head -n1) == "$least" ]]
}

# The version of Debian's compiler that apt would take, if any.
offered_rustc() { apt-cache show --no-all-versions rustc-web 2>/dev/null | sed -n 's/^Version: //p'; }

depends_of() { apt-cache depends "$1" | sed -n 's/.*Depends: //p'; }

# Debian's compiler and its sources, unpacked into the folder $1.
unpack_rustc() {
    local debs=(rustc-web rust-web-src libstd-rust-web-dev) new=$1 deb std
    command -v apt-get dpkg-deb >/dev/null ||
        die "rustc has no sources of std; run: rustup component add rust-src (or build on Debian 12)"
    # Outdated package lists would offer an old version.
    if ! is_new_enough "$(offered_rustc)"; then
        say "asking apt for its package lists (once)"
        apt-get update -qq || die "apt-get update failed; run it as root, then this again"
        is_new_enough "$(offered_rustc)" ||
            die "no Rust that is new enough in apt's packages; run: rustup component add rust-src"
    fi
    # The libraries that the compiler loads carry versions in their names.
    std=$(depends_of libstd-rust-web-dev | grep '^libstd-rust-web-')
    debs+=("$std" "$(depends_of "$std" | grep '^libllvm')")
    say "fetching ${debs[*]} (140 MB, 900 MB unpacked)"
    mkdir -p "$new/debs" "$new/bin"
    (cd "$new/debs" && apt-get download -qq "${debs[@]}" 2>&1 | grep -v unsandboxed >&2) || true
    for deb in "$new"/debs/*.deb; do dpkg-deb -x "$deb" "$new/root"; done
    rm -r "$new/debs"
    cat >"$new/bin/rustc" <<'END'
#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")/root/usr
LD_LIBRARY_PATH=$(echo "$root"/lib/*-linux-gnu) exec "$root/bin/rustc" "$@"
END
    chmod +x "$new/bin/rustc"
    "$new/bin/rustc" --version >/dev/null || die "the compiler from Debian's packages does not start"
}

install_zig() {
    say "fetching $zig_packages (440 MB unpacked)"
    python3 -m venv "$1" || die "python3 -m venv failed; on Debian: apt-get install python3-venv"
    # A virtual environment contains its own path, so programs in it are called through python.
    # shellcheck disable=SC2086  # a list
    "$1/bin/python" -m pip install -q --disable-pip-version-check $zig_packages
}

# provide NAME FUNCTION: fills the tools folder NAME in one step, so that an interrupted run leaves nothing half-made.
provide() {
    local dir=$tools/$1
    [[ -d $dir ]] && return
    rm -rf "$dir.new"
    mkdir -p "$tools"
    "$2" "$dir.new"
    mv "$dir.new" "$dir"
}

has_sources() { [[ -e $("$1" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/Cargo.lock ]]; }

# Sets RUSTC and PATH.
prepare_tools() {
    local zig=zig-$zig_version
    provide "$zig" install_zig
    if ! has_sources "${RUSTC:-rustc}"; then
        provide rustc unpack_rustc
        export RUSTC=$tools/rustc/bin/rustc
        if ! has_sources "$RUSTC" || ! is_new_enough "$("$RUSTC" --version | cut -d' ' -f2)"; then
            die "$tools/rustc is too old or has no sources of std; remove the folder and try again"
        fi
    fi
    export PATH=$tools/$zig/bin:$PATH
    export ZIG_GLOBAL_CACHE_DIR=$tools/zig-cache ZIG_LOCAL_CACHE_DIR=$tools/zig-cache
    # -Zbuild-std is not stable; the compiler is the stable one.
    export RUSTC_BOOTSTRAP=1
}

# The option $1 with a space before it; nothing, if this rustc does not know it.
flag_if_known() {
    if "${RUSTC:-rustc}" "$1" --print sysroot >/dev/null 2>&1; then echo " $1"; fi
}

# Sets the flags of both compilers for target $1.
prepare_target() {
    # zig brings the start-up objects, so rustc must not look for its own.
    # The log tells of a panic, but not in which line of the code.
    local rust="-Clink-self-contained=no -Zlocation-detail=none" order=cross/build/order.ld
    # No panic passes through SQLite, so nobody would read its tables for unwinding: 55 KB.
    local c="-fno-asynchronous-unwind-tables -fno-unwind-tables"
    # zig makes -Os of -Oz, with which SQLite is 100 KB larger. The program is never moved in memory, so no code is needed for it.
    c+=" -fno-pic -Xclang -Oz"
    rust+=" -Ctarget-feature=+crt-static -Crelocation-model=static"
    # No destructor of ours or of the libraries panics in a state that occurs (tiny_http's have two `unwrap`). If one did, the
    # server would end, and not one request. The code to go on after it has 60 KB.
    rust+=$(flag_if_known -Zpanic-in-drop=abort)
    case $1 in
        mips*)
            # The code of this processor is half as long again as that of the others. Each of these takes off some of it,
            # and together a quarter: optimising for size alone, fewer empty delay slots, fewer constants kept on the stack,
            # of which there is more than of registers, ends of branches that are alike merged down to two instructions, fewer
            # jumps, and hashes in loops (unrolled, SHA-512 alone has 53 KB, more than the cache of many of these processors).
            export CARGO_PROFILE_RELEASE_OPT_LEVEL=z
            rust+=" --cfg=sha2_backend_soft=\"compact\""
            local option
            for option in -disable-mips-df-succbb-search=false -disable-machine-licm -disable-machine-sink \
                -tail-merge-threshold=1000 -tail-merge-size=2 -split-spill-mode=size -apply-ext-tsp-for-size=1; do
                c+=" -mllvm $option"
                rust+=" -Cllvm-args=$option"
            done
            rust+=" -Cllvm-args=-inline-call-penalty=35 -Cllvm-args=-min-jump-table-entries=8"
            order=cross/build/mips.ld
            ;;
    esac
    rust+=" -Clink-arg=-Wl,-T,$order"
    # The same bytes in whatever folders clone, tools and crates are.
    local folder
    for folder in "$repo=/ankipi" "$tools=/tools" "${CARGO_HOME:-$HOME/.cargo}=/cargo"; do
        rust+=" --remap-path-prefix=$folder"
        c+=" -ffile-prefix-map=$folder"
    done
    export ANKIPI_TARGET=$1 RUSTFLAGS=$rust CARGO_TARGET_DIR=$out "CFLAGS_${1//-/_}=$c"
}

zigbuild() {
    cargo-zigbuild "$1" --locked --target "$2" -Zbuild-std=std,panic_unwind \
        -Zbuild-std-features=panic-unwind,optimize_for_size "${@:3}"
}

# Ends the script unless the program $1 says $2 of the processor that it is for.
is_for() { readelf -A "$1" | grep -q "$2" || die "$1 is not for the processor: $(readelf -A "$1")"; }

# Ends the script unless $2 is a static stripped program for target $1, small enough for a router's flash.
check_binary() {
    local bytes headers
    bytes=$(stat -c %s "$2")
    headers=$(readelf -lS "$2")
    if grep -qE 'INTERP|DYNAMIC' <<<"$headers"; then die "$2 is not static"; fi
    if grep -q '\.symtab' <<<"$headers"; then die "$2 is not stripped"; fi
    ((bytes < max_bytes)) || die "$2 has $bytes bytes, more than $max_bytes"
    case $1 in
        arm-*) is_for "$2" 'Tag_CPU_arch: v6$' ;;
        # An instruction of an FPU would stop the program where the kernel emulates none.
        armv5te-*)
            is_for "$2" 'Tag_CPU_arch: v5TE'
            if readelf -A "$2" | grep -q Tag_FP_arch; then die "$2 uses an FPU"; fi
            ;;
    esac
}

build() {
    local target=$1 started=$SECONDS
    say "building for $target (a first build 2-3 minutes, later ones 1)"
    prepare_target "$target"
    # cargo does not know the linker's scripts.
    find "$out/$target/release" "$out/$target/release/deps" -maxdepth 1 -type f -name 'ankipi*' \
        ! -newer cross/build/order.ld -delete 2>/dev/null || true
    zigbuild build "$target" --release --bin ankipi
    deliver "$target" ankipi "$out/$target/release/ankipi"
    check_binary "$target" "$out/$target/ankipi"
    if [[ $bench ]]; then
        zigbuild build "$target" --release --bench sync
        deliver "$target" ankipi-bench "$(newest "$out/$target/release/deps"/sync-*)"
    fi
    printf '%-32s %9d bytes %4d s  %s\n' \
        "$target" "$(stat -c %s "$out/$target/ankipi")" $((SECONDS - started)) "$out/$target/ankipi"
}

# The result is replaced in one step: a copy made during a build is the whole old program or the whole new one.
deliver() {
    cp "$3" "$out/$1/$2.new"
    mv "$out/$1/$2.new" "$out/$1/$2"
}

newest() { find "$@" ! -name '*.d' -printf '%T@ %p\n' | sort -n | tail -n1 | cut -d' ' -f2-; }

bench=
main() {
    local word targets=()
    for word; do
        case $word in
            -h | --help) usage; exit ;;
            --bench) bench=1 ;;
            -*) die "$word is not an option; --help tells more" ;;
            *) is_target "$word" || die "$word is not a target; --help lists them"; targets+=("$word") ;;
        esac
    done
    [[ ${#targets[@]} -gt 0 ]] || { usage; exit 2; }
    cd "$repo"
    prepare_tools
    for target in "${targets[@]}"; do (build "$target"); done # the flags of one are not those of the next
}

# Sourced, this lends its functions to the other scripts.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
    exit # a running shell reads on in a file that is edited meanwhile
fi
