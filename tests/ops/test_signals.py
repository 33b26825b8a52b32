"""Stopping and reloading: what init systems send, and what must be left behind."""

import hashlib
import os
import signal
import socket
import subprocess
import time

import pytest
import zstandard

from proxy import CUT
from server import Server, command


def end(server, number=signal.SIGTERM, within: float = 10.5) -> None:
    """Sends a signal, and waits for the clean end that must follow."""
    server.process.send_signal(number)
    server.process.wait(within)
    Server.running.remove(server)
    assert server.process.returncode == 0, server.log()
    assert "stopping" in server.log()
    left = [path.name for path in server.base.rglob("*") if path.name.endswith(("-wal", "-shm", "-journal", ".sock"))]
    assert not left, left


@pytest.fixture
def server(new_server):
    return new_server("anna:secret")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sync_that_is_open_is_rolled_back(server, new_account, new_proxy, number):
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices()
    desk.add_note("four")
    proxy = new_proxy(account)
    desk.use(proxy.url)

    def cut_off():
        assert list(server.base.rglob("*-wal")), "no transaction is open"
        end(server, number)
        return CUT

    # All of the desk's changes are in the transaction.
    proxy.before("sanityCheck2", cut_off)
    with pytest.raises(Exception):
        desk.sync()
    server.start()
    desk.use(server.url)
    assert account.device_in_sync("other").fronts() == ["one", "three", "two"]
    desk.sync()
    phone.sync()
    assert phone.fronts() == ["four", "one", "three", "two"]


BODY = zstandard.compress(os.urandom(400_000))
HALF = len(BODY) // 2


def half_upload(server) -> socket.socket:
    """An upload of which a worker has the first half."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=15)
    key = hashlib.sha1(b"anna:secret").hexdigest()
    head = (f"POST /sync/upload HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\n"
            f'anki-sync: {{"v":11,"k":"{key}","c":"test","s":""}}\r\n\r\n')
    sock.sendall(head.encode() + BODY[:HALF])
    deadline = time.monotonic() + 10
    while not list(server.base.rglob("collection.anki2.upload-*")):
        assert time.monotonic() < deadline, server.log()
    return sock


def test_a_request_in_hand_is_finished(server):
    with half_upload(server) as sock:
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while server.healthy():
            assert time.monotonic() < deadline, "it still takes requests"
        sock.sendall(BODY[HALF:])
        # The body is not a collection, so the upload is refused; but it gets its response.
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    end(server)


def test_a_client_that_does_not_go_on_holds_the_end_up_for_ten_seconds_at_most(server):
    with half_upload(server):
        started = time.monotonic()
        end(server)
        assert 8 < time.monotonic() - started < 10.5


def test_idle_connections_do_not_hold_the_end_up(server):
    with socket.create_connection(("127.0.0.1", server.port)):
        assert server.healthy()
        started = time.monotonic()
        end(server)
        assert time.monotonic() - started < 3


def test_process_number_1_stops_too(server):
    """As in a container without an init."""
    if os.getuid() != 0:
        pytest.skip("only root makes process namespaces here")
    server.stop()
    server.command_line = lambda: ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command(official=False)]
    server.start()
    (pid,) = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True).stdout.split()
    status = open(f"/proc/{pid}/status").read()
    assert status.split("NSpid:")[1].split("\n")[0].split() == [pid, "1"], status
    os.kill(int(pid), signal.SIGTERM)
    server.process.wait(10.5)
    Server.running.remove(server)
    assert server.process.returncode == 0 and "stopping" in server.log()


def test_hangup_reads_log_level_and_accounts_anew(tmp_path, new_server, new_account):
    config = tmp_path / "ankipi.conf"
    config.touch(0o600)
    config.write_text("SYNC_USER1=anna:secret\nSYNC_LOG=warn\n")

    class FromFile(Server):
        def command_line(self):
            return [*command(official=False), "--config", str(config)]

    server = FromFile(tmp_path / "base", [])
    try:
        anna = new_account(server, "anna", "secret")
        anna.two_devices()
        assert "/sync/" not in server.log()
        config.write_text("SYNC_USER1=anna:secret\nSYNC_USER2=bob:geheim\nSYNC_LOG=info\n")
        hang_up(server, "reloaded the log level and 2 accounts")
        new_account(server, "bob", "geheim").two_devices("bob's")
        assert "/sync/upload 200" in server.log()
        # Wrong settings change nothing.
        config.write_text("SYNC_USER1=nonsense\n")
        hang_up(server, "reload failed, keeping the old settings: SYNC_USER1 must read name:password")
        config.write_text("SYNC_USER2=bob:geheim\n")
        hang_up(server, "reloaded the log level and 1 account")
        with pytest.raises(Exception):
            anna.devices[0].sync()
    finally:
        server.stop()


def hang_up(server, expected: str) -> None:
    server.mark_log()
    server.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while expected not in server.log():
        assert time.monotonic() < deadline and server.process.poll() is None, server.log()
        time.sleep(0.01)  # between two looks
