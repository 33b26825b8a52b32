#!/usr/bin/env bash
# Builds ankipi for boards and lets it serve under their emulated processors: cross/check.sh [--brief] [--unit] TARGET...
#
# For each target (cross/build.sh --help lists them): the scripted clients of tests/server and tests/media, then real Anki
# clients that upload, sync and download, media too. It installs the client and, as root on Debian, the emulators.
#
#   --brief  leave out the real client's media and what takes minutes (as .ci/run does)
#   --unit   run the crate's own tests on the target, too: sizes and atomics of a 32-bit processor
set -euo pipefail
cross=$(dirname "$0")
# shellcheck source=cross/build.sh
source "$cross/build.sh"
# shellcheck source=cross/shared/emulate.sh
source "$cross/shared/emulate.sh"
cd "$repo"

# Figures of the process are those of the emulator here: its memory is measured on real boards and in whole emulated ones.
measuring=(
    zips_that_no_client_sends_change_nothing
    bombs_go_off_in_flat_memory
    windows_of_many_small_bodies_stay_within_the_memory_of_the_server
    bodies_that_do_not_decode_are_400
    bodies_over_the_limit_are_413_and_the_log_names_the_variable
    wrong_shapes_are_400_and_the_session_survives_them
    a_large_collection_passes_in_flat_memory
    limits_hold_for_forms_and_the_log_names_the_variable
    a_note_of_many_megabytes_is_refused_without_being_read
    a_note_of_many_megabytes_that_is_in_place_stops_its_sync_alone
    what_requests_take_they_give_back_however_many_come_at_once
    an_idle_program_for_boards_keeps_its_budget
    an_open_sync_takes_little_memory_while_many_are_open
    whatever_is_zstd_is_taken_within_the_memory_of_one_client
    # What happens while a password is hashed, of which an emulator needs many times as long.
    a_login_brings_back_neither_an_account_nor_a_password_of_before
)
measuring_stories="not test_a_thousand_files and not test_a_file_of_90_mb"

# What other programs of the machine write to the files of a running server. SQLite keeps the index of a WAL in the byte order of
# the processor, so an emulated server of the other order shares it with no program here. On a board all have one order.
shared_index=(
    outside_changes::meta_tells_what_somebody_else_did_to_the_collection
    outside_changes::begin_and_media_changes_tell_what_somebody_else_did_to_the_index
)

# Hundreds of starts, each of which takes an emulator half a second.
long=(crash::a_kill_at_any_moment_of_an_upload_heals)

# The emulator for target $1, with the weakest processor that the target is for.
emulator() {
    case $1 in
        aarch64-*) echo qemu-aarch64-static -cpu cortex-a53 ;;
        armv7-*) echo qemu-arm-static -cpu cortex-a7 ;;
        arm-*) echo qemu-arm-static -cpu arm1176 ;;
        armv5te-*) echo qemu-arm-static -cpu arm926 ;;
        mips-*) echo qemu-mips-static -cpu 24Kc ;;
        mipsel-*) echo qemu-mipsel-static -cpu 24Kc ;;
        riscv64gc-*) echo qemu-riscv64-static -cpu sifive-u54 ;;
        x86_64-* | i686-*) echo env ;;
        *) die "no emulator is known for $1" ;;
    esac
}

# A script that stands for the server: tests start it as they start ankipi.
wrap() {
    local script=$out/$1/emulated
    printf '#!/bin/sh\nexec %s %s/%s/ankipi "$@"\n' "$(emulator "$1")" "$out" "$1" >"$script"
    chmod +x "$script"
    echo "$script"
}

unit_tests() {
    local upper=${1^^}
    say "running the crate's own tests on $1"
    prepare_target "$1"
    # Without optimisation each password takes an emulator half a minute.
    export CARGO_PROFILE_DEV_OPT_LEVEL=1
    # --test-threads=1: an emulator that is short of time breaks tests of patience.
    env "CARGO_TARGET_${upper//-/_}_RUNNER=$(emulator "$1")" \
        cargo-zigbuild test --locked --target "$1" -Zbuild-std --lib -- --quiet --test-threads=1
}

check() {
    local target=$1 emulated name skips=() skipped=() chosen=() stories=(tests/real/test_{full,normal}_sync.py)
    if [[ $(emulator "$target") != env ]]; then
        skipped=("${measuring[@]}")
        chosen=(-k "$measuring_stories")
    fi
    if [[ $target == mips-* ]]; then
        skipped+=("${shared_index[@]}")
        say "byte order: ${#shared_index[@]} scripted tests are left out, ${shared_index[*]}"
    fi
    # In a subshell: the variables of a cross build would reach the build of the tests.
    (prepare_tools; build "$target")
    emulated=$(wrap "$target")
    "$emulated" --version >/dev/null || die "$target does not start under $(emulator "$target")"
    if [[ $brief ]]; then skipped+=("${long[@]}"); else stories+=(tests/real/test_media.py); fi
    for name in "${skipped[@]}"; do skips+=(--skip "$name"); done
    say "scripted clients against $target under $(emulator "$target")"
    ANKIPI_BIN=$emulated cargo test --locked --quiet --test server --test media -- --test-threads=3 "${skips[@]}"
    say "a real client against $target"
    ANKIPI_BIN=$emulated tests/.venv/bin/python -m pytest -q "${chosen[@]}" "${stories[@]}"
    if [[ $unit ]]; then (prepare_tools; unit_tests "$target"); fi
}

bench=
brief=
unit=
targets=()
for word; do
    case $word in
        -h | --help) sed -n '2,8s/^# \?//p' "$0"; exit ;;
        --brief) brief=1 ;;
        --unit) unit=1 ;;
        *) is_target "$word" || die "$word is not a target; cross/build.sh --help lists them"; targets+=("$word") ;;
    esac
done
[[ ${#targets[@]} -gt 0 ]] || die "name a target; cross/build.sh --help lists them"
need qemu-arm-static qemu-user-static
tests/real/install
for target in "${targets[@]}"; do check "$target"; done
