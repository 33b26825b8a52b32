#!/usr/bin/env bash
# Makes cross/build/order.ld anew: which functions the linker puts side by side, for cross/build.sh: cross/build/order.sh
#
# The kernel maps a program 64 KB at a time. With the functions in the order in which they were compiled, an idle server
# touches nearly all of 2 MB of code; with those that it runs in one place, it maps 0.3 MB of them. First come the functions
# of an idle server, then those that syncs run, as valgrind sees them while the benchmark makes its syncs. A function that
# has another name by now stays where it was: the list may grow old, and costs memory alone. Takes ten minutes.
set -euo pipefail
cross=$(dirname "$0")/..
# shellcheck source=cross/build.sh
source "$cross/build.sh"
cd "$repo"
command -v valgrind >/dev/null || die "no valgrind; on Debian: apt-get install --no-install-recommends valgrind"

target=x86_64-unknown-linux-musl
# Where an idle server runs other functions: those for numbers of 64 bits, and another C library's.
narrow=i686-unknown-linux-musl
jobs=()
for job in upload download old-upload old-download notes-up notes-down reviews-up reviews-down history-up \
    history-down pictures-up pictures-down recording-up recording-down connections; do
    jobs+=(--job "$job")
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export CROSS_TARGET=$out

(
    out=$scratch/build
    prepare_tools
    for one in $target $narrow; do
        prepare_target "$one"
        CARGO_PROFILE_RELEASE_STRIP=false zigbuild build "$one" --release --bin ankipi
    done
)
# The program of a target.
server() { echo "$scratch/build/$1/release/ankipi"; }

# $1: what the names of the functions that run go to, $2: the target, then more options of callgrind.
callgrind() {
    echo "exec valgrind -q --tool=callgrind --demangle=no --callgrind-out-file=$1 ${*:3} $(server "$2")"
}

for one in $target $narrow; do
    say "watching an idle server for $one"
    mkdir "$scratch/$one"
    SYNC_BASE=$scratch/$one SYNC_HOST=127.0.0.1 SYNC_PORT=0 SYNC_USER1=a:a SYNC_USER2=b:b SYNC_USER3=c:c SYNC_USER4=d:d \
        bash -c "$(callgrind "$scratch/idle.$one.%p" "$one")" 2>"$scratch/$one.log" &
    until address=$(grep -o 'http://[0-9.:]*' "$scratch/$one.log"); do sleep 0.2; done
    python3 -c "import urllib.request as u; [u.urlopen('$address' + path) for path in ('/health', '/')]"
    sleep 1
    kill -INT $!
    wait
done

say "watching syncs"
# The benchmark kills its server, so what was seen is written down every now and then.
{ echo '#!/bin/bash'; callgrind "$scratch/sync.%p" $target --dump-every-bb=3000000; } >"$scratch/watched"
chmod +x "$scratch/watched"
cargo bench --locked --bench sync -- --quick --server "$scratch/watched" "${jobs[@]}" >&2

python3 - "$scratch" "$(server $target)" "$(server $narrow)" $narrow <<'END' >cross/build/order.ld
import collections, glob, re, subprocess, sys

scratch, server, narrow_server, narrow = sys.argv[1:]


def ran(pattern, server):
    """The functions of the program that callgrind saw; in its files a name stands where it first occurs. The C library has
    several names for some, and the section may have another one."""
    address_of, names_at = {}, collections.defaultdict(set)
    for line in subprocess.check_output(["nm", "--defined-only", server], text=True).splitlines():
        address, _, name = line.split()
        address_of[name] = address
        names_at[address].add(name)
    names = set()
    for path in glob.glob(f"{scratch}/{pattern}"):
        found = re.findall(r"^c?fn=\(\d+\) (\S+?)(?:'\d+)?$", open(path, errors="replace").read(), re.M)
        names.update(found)
    return {alias for name in names & address_of.keys() for alias in names_at[address_of[name]]}


def section(name):
    """A pattern for its section: rarely run ones are .text.unlikely.NAME. Hashes of crates differ between machines,
    and so do references to earlier parts of the name."""
    if name.startswith("_R"):
        name = re.sub(r"Cs[0-9A-Za-z]{6,13}_", "C*_", name)
        name = re.sub(r"(?<=[A-Za-z_0-9])B[0-9A-Za-z]{0,3}_", "B*_", name)
    name = re.sub(r"\.(llvm\.)?\d+$", "*", name)
    # The crate that asked for a generic function: the first of several in one build, another one in the next.
    name = re.sub(r"EC\*_\d+\w+$", "EC*", name)
    return ".text*." + re.sub(r"\*+", "*", name)


idle = ran("idle.x86_64-*", server) | ran(f"idle.{narrow}.*", narrow_server)
idle = sorted({section(name) for name in idle})
syncs = sorted({section(name) for name in ran("sync.*", server)} - set(idle))
print("/* Made by cross/build/order.sh. */")
print("SECTIONS {\n  .text.ankipi : {")
# The C library's, of which little is linked, and what runs before main, whose names valgrind does not tell.
print("    *(.text .text..L* .text*.__libc_start_main .text*.static_init_tls .text*.dummy)")
print("    /* An idle server. */")
print("\n".join(f"    *({section})" for section in idle))
print("    /* Alike in many types, of which a build keeps one or another. */")
for family in "drop_in_place", "4Drop4drop", "9from_iter", "6Result", "5error":
    print(f"    *(.text*._R*{family}*)")
print("    /* What valgrind does not see: the kernel's clock, and the processor's own instructions for hashes. */")
print("    *(.text*.strcmp .text*._R*4sha[12]*compress*)")
print("    /* Syncs. */")
print("\n".join(f"    *({section})" for section in syncs))
print("  }\n}\nINSERT BEFORE .text;")
END
say "cross/build/order.ld names $(grep -c '\.text' cross/build/order.ld) functions"
