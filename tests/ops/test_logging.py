"""Where log lines go, and that a log which cannot be written stops nothing."""

import os
import pty
import re
import signal
import subprocess

import pytest

from server import command, free_port

LINE = r"(?:INFO|WARN) {1,2}\[[a-z_:]+\] "
STAMP = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ "


def start(tmp_path, stderr):
    env = {"SYNC_BASE": str(tmp_path / "base"), "SYNC_HOST": "127.0.0.1", "SYNC_PORT": str(free_port()), "SYNC_USER1": "anna:secret",
           "PATH": "/usr/bin:/bin", "TERM": "xterm-256color"}
    return subprocess.Popen(command(official=False), env=env, stderr=stderr, stdin=subprocess.DEVNULL), int(env["SYNC_PORT"])


def ended(process) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(10)


def test_a_pipe_gets_no_times_and_a_file_does(tmp_path):
    process, _ = start(tmp_path, subprocess.PIPE)
    first = process.stderr.readline().decode()
    assert re.match(LINE, first), first
    assert ended(process) == 0
    with open(tmp_path / "log", "wb") as log:
        process, port = start(tmp_path, log)
    while b"listens" not in (tmp_path / "log").read_bytes():
        assert process.poll() is None
    assert ended(process) == 0
    for line in (tmp_path / "log").read_text().splitlines():
        assert re.match(STAMP + LINE, line), line


def test_a_terminal_gets_times_and_no_colours(tmp_path):
    ours, theirs = pty.openpty()
    process, _ = start(tmp_path, theirs)
    os.close(theirs)
    with os.fdopen(os.dup(ours)) as terminal:
        line = terminal.readline()
    assert re.match(STAMP + LINE, line) and "\x1b" not in line, line
    assert ended(process) == 0
    os.close(ours)


@pytest.mark.parametrize("where", ["/dev/full", "closed pipe"])
def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, where):
    if where == "/dev/full":
        with open(where, "wb") as full:
            process, port = start(tmp_path, full)
    else:
        process, port = start(tmp_path, subprocess.PIPE)
        process.stderr.close()
    for _ in range(20):
        asked = ["curl", "--silent", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", f"http://127.0.0.1:{port}/nothing", "-o", "/dev/null",
                 "-w", "%{http_code}"]
        assert subprocess.run(asked, capture_output=True, text=True).stdout == "404"
    assert ended(process) == 0
