"""Where log lines go, and that a log which cannot be written stops nothing."""

import os
import pty
import re
import signal
import socket
import subprocess

import pytest

from junk import log_in
from server import command, free_port
from test_listening import has_ipv6

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


class Listening:
    """The server that wrote this first line."""

    def __init__(self, line: str):
        self.port = int(re.search(r"listens on http://[\d.]+:(\d+)", line)[1])


def test_the_journal_gets_priorities(tmp_path):
    ours, theirs = socket.socketpair()
    status = os.fstat(theirs.fileno())
    env = {"SYNC_BASE": str(tmp_path / "base"), "SYNC_HOST": "127.0.0.1", "SYNC_PORT": "0", "SYNC_USER1": "anna:secret",
           "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    process = subprocess.Popen(command(official=False), env=env, stderr=theirs, stdin=subprocess.DEVNULL)
    theirs.close()
    with ours.makefile() as lines:
        first = next(line for line in lines if "listens" in line)
        assert re.match("<6>" + LINE, first), first
        log_in(Listening(first), "anna", "wrong")
        failed = next(line for line in lines if "login failed" in line)
        assert re.match(r"<4>WARN  \[login\] ", failed), failed
        assert ended(process) == 0


def test_split_logs_send_warnings_to_stderr_alone(tmp_path):
    env = {"SYNC_BASE": str(tmp_path / "base"), "SYNC_HOST": "127.0.0.1", "SYNC_PORT": "0", "SYNC_USER1": "anna:secret", "SYNC_LOG_SPLIT": "yes"}
    process = subprocess.Popen(command(official=False), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    assert re.match(LINE, first) and "listens" in first, first
    log_in(Listening(first), "anna", "wrong")
    assert ended(process) == 0
    out, errors = process.communicate()
    assert "WARN" not in out and "stopping" in out
    assert "login failed" in errors and all(line.startswith("WARN ") for line in errors.splitlines()), errors


@pytest.mark.parametrize("host", ["0.0.0.0", "unix"] + ["::"] * has_ipv6())
def test_the_health_check_asks_the_server_with_the_same_settings(host, tmp_path):
    host = f"unix:{tmp_path}/socket" if host == "unix" else host
    env = {"SYNC_BASE": str(tmp_path / "base"), "SYNC_HOST": host, "SYNC_PORT": str(free_port()), "SYNC_USER1": "anna:secret", "SYNC_BASE_PATH": "/anki"}

    def check() -> subprocess.CompletedProcess:
        return subprocess.run([*command(official=False), "--healthcheck"], env=env, capture_output=True, text=True, timeout=30)

    assert check().returncode == 1 and "no server answers" in check().stderr
    process = subprocess.Popen(command(official=False), env=env, stderr=subprocess.PIPE, text=True)
    while "listens" not in process.stderr.readline():
        assert process.poll() is None
    assert check().returncode == 0, check().stderr
    assert ended(process) == 0
    assert check().returncode == 1
