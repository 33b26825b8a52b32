#!/usr/bin/env bash
# Builds ankipi by `cargo install --git`, the way that Anki's manual teaches for its own server, and lets real clients sync with
# what that installs: cross/checks/cargo-install.sh
#
# cargo does not read .cargo/config.toml then, where the flags of SQLite's build are. Of the last commit, without optimisation.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=cross/shared/say.sh
source "$repo/cross/shared/say.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$repo/tests/real/install"
say "building (minutes, the first time)"
cd "$work" # cargo looks for settings in the folder that it is called in
CARGO_TARGET_DIR=$repo/target/cargo-install cargo install --locked --debug --git "file://$repo" --root "$work" ankipi
ANKIPI_BIN=$work/bin/ankipi "$repo/tests/.venv/bin/python" -m pytest -q "$repo/tests/real/test_full_sync.py"
SYNC_BASE=$work/data SYNC_HOST=127.0.0.1 SYNC_PORT=0 SYNC_USER1=a:b timeout 5 "$work/bin/ankipi" 2>"$work/log" || true
grep -q 'built without .cargo/config.toml' "$work/log" || die "it does not tell what it lacks: $(cat "$work/log")"
say "what cargo install built serves real clients"
