# shellcheck shell=bash
# Starts and stops what a check has installed, and lets real clients sync with it; sourced. `work` is the folder for the log,
# `repo` that of the clone.
# shellcheck disable=SC2154

server=

expect() { [[ $2 == "$3" ]] || die "$1: '$2' instead of '$3'"; }

# page_lines PAGE SENTENCE: the lines of the first block after that sentence of a page, as its reader types them for user `me`; who
# types here is root.
page_lines() {
    awk -v sentence="$2" 'index($0, sentence) { on = 1 } on && /^    / { print substr($0, 5); found = 1 } found && !/^    / { exit }' \
        "$repo/$1" | sed 's/ *#.*//; s/^sudo //; s/NAME/me/'
}

# start COMMAND...: starts the server on a free port. Two real clients of user `me`, password `secret`, then sync through it.
start() {
    local port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    env SYNC_HOST=127.0.0.1 SYNC_PORT="$port" "$@" 2>"$work/log" &
    server=$!
    for _ in {1..300}; do
        if curl -fs "http://127.0.0.1:$port/health" >/dev/null; then
            "$repo/tests/.venv/bin/python" "$repo/cross/checks/sync.py" "http://127.0.0.1:$port/" me secret >&2
            return
        fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/log" >&2
    die "the installed server does not answer"
}

stop() {
    kill "$server"
    wait "$server" || die "the server ended with $?"
    server=
}
