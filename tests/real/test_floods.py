"""Floods and hostile requests. During each a real client syncs and memory stays within the budget; afterwards the numbers of
threads and descriptors are as before."""

import contextlib
import json
import resource
import select
import socket
import time
from collections.abc import Iterator

import pytest

from account import Account
from figures import Figures, until
from server import Server

pytestmark = pytest.mark.ours

BUDGET_KIB = 16 * 1024
PATIENCE_SECS = 30
MIB = 1 << 20
TEN_GB = 10 * 10**9
# More than the two ends of a connection hold on their way: what was sent before the word of the other end came.
IN_FLIGHT = 8 * MIB


@pytest.fixture(scope="module", autouse=True)
def enough_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Siege:
    """A server with one user, whose devices are in sync."""

    def __init__(self, server: Server, account: Account):
        self.server, self.account = server, account
        self.desk, self.phone = account.two_devices()
        self.notes = 0
        self.sync()
        self.calm = Figures.of(server)
        self.sockets: list[socket.socket] = []

    def sync(self) -> None:
        """The syncs of the real users during the flood."""
        self.notes += 1
        self.desk.add_note(f"meanwhile {self.notes}")
        self.desk.sync()
        self.phone.sync()
        assert f"meanwhile {self.notes}" in self.phone.fronts()

    def connect(self, blocking: bool = True) -> socket.socket:
        sock = socket.socket()
        self.sockets.append(sock)
        sock.settimeout(PATIENCE_SECS)
        sock.setblocking(blocking)
        sock.connect_ex(("127.0.0.1", self.server.port))
        return sock

    def ask(self, head: bytes, pieces: Iterator[bytes] = iter(())) -> tuple[int, int]:
        """Sends a request until there is an answer; gives its status and how many bytes of the body were sent."""
        sock = self.connect()
        sock.sendall(head)
        return answer_while_sending(sock, pieces)

    def lift(self) -> None:
        for sock in self.sockets:
            sock.close()
        # Threads for the most that went on at once end when they were idle for a few seconds.
        now = until(lambda: Figures.of(self.server),
                    lambda now: now.threads <= self.calm.threads and now.descriptors <= self.calm.descriptors, PATIENCE_SECS)
        print(f"peak {now.peak_kib} KiB; before {self.calm.threads} threads, {self.calm.descriptors} descriptors, "
              f"after {now.threads}, {now.descriptors}")
        assert now.threads <= self.calm.threads and now.descriptors <= self.calm.descriptors
        left = now.files.keys() - self.calm.files.keys()
        # The state before the first sync of the day may have been copied since.
        assert not {name for name in left if "/backups/day-" not in name}, "something was left on the disk"
        assert now.peak_kib <= BUDGET_KIB
        assert "panicked" not in self.server.log()
        self.account.settle(self.desk, self.phone)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def answer_while_sending(sock: socket.socket, pieces: Iterator[bytes]) -> tuple[int, int]:
    """Status 0 stands for a connection that ended without an answer."""
    sent, rest = 0, b""
    deadline = time.monotonic() + PATIENCE_SECS
    while time.monotonic() < deadline:
        rest = rest or next(pieces, b"")
        readable, writable, _ = select.select([sock], [sock] if rest else [], [], 1)
        try:
            if readable:
                return status_of(sock.recv(4096)), sent
            if writable:
                count = sock.send(rest)
                sent, rest = sent + count, rest[count:]
        except ConnectionError:
            # What came before the reset can still be read.
            with contextlib.suppress(ConnectionError):
                return status_of(sock.recv(4096)), sent
            return 0, sent
    raise AssertionError(f"no answer within {PATIENCE_SECS} s, {sent} bytes were taken")


@pytest.fixture
def besiege(new_server, new_account):
    sieges = []

    def start(**settings) -> Siege:
        server = new_server("anna:secret", **settings)
        sieges.append(Siege(server, new_account(server, "anna", "secret")))
        return sieges[-1]

    yield start
    for siege in sieges:
        siege.lift()


@pytest.fixture
def siege(besiege):
    return besiege()


def test_500_half_open_connections(siege):
    for n in range(500):
        sock = siege.connect()
        sock.sendall([b"", b"POST /sy", b"POST /sync/meta HTTP/1.1\r\nHost: x\r\nanki-sync: {"][n % 3])
    siege.sync()


def test_a_burst_of_2000_connections_with_256_descriptors(besiege):
    siege = besiege(open_files=256)
    for n in range(2000):
        siege.connect(blocking=False)
        if n % 500 == 0:
            siege.sync()
    siege.sync()
    # Some of them ask for something at last.
    for sock in siege.sockets[::10]:
        try:
            sock.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        except OSError:
            pass  # it was not accepted yet, or given up for others
    siege.sync()


def test_slow_heads_and_bodies(siege):
    """Each drips as slowly as it may, and some a little slower than that."""
    form = siege_form_head()
    heads = [siege.connect() for _ in range(100)]
    bodies = [siege.connect() for _ in range(100)]
    for sock in heads:
        sock.sendall(b"POST /sync/meta HTTP/1.1\r\nX: ")
    for sock in bodies:
        sock.sendall(form)
    started, ended = time.monotonic(), {}
    while len(ended) < 200 and time.monotonic() < started + PATIENCE_SECS:
        for sock in [sock for sock in heads + bodies if sock not in ended]:
            readable, _, _ = select.select([sock], [], [], 0)
            try:
                if readable:
                    ended[sock] = status_of(sock.recv(4096))
                else:
                    sock.send(b"x")
            except ConnectionError:
                ended[sock] = 0
        siege.sync()
        time.sleep(0.5)  # the drip
    assert {ended.get(sock) for sock in heads + bodies} == {408}


def siege_form_head(path: str = "/sync/applyChunk", framing: str = "Content-Length: 60000") -> bytes:
    """A form in which the key has not come when the data come, so that nobody knows yet whose it is."""
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n{framing}\r\n\r\n"
            "--b\r\nContent-Disposition: form-data; name=\"data\"; filename=\"data\"\r\n\r\n").encode()


def test_large_bodies_that_drip_hold_no_worker(siege):
    """Eight bodies that nobody has vouched for, each large enough to be handed to a worker, and just not too slow."""
    drips = [siege.connect() for _ in range(8)]
    for sock in drips:
        sock.sendall(siege_form_head(framing="Content-Length: 50000000") + b"x" * 40_000)
    for _ in range(3):
        for sock in drips:
            try:
                sock.send(b"x" * 200)
            except ConnectionError:
                pass
        siege.sync()


def test_a_header_line_of_100_megabytes(siege):
    status, sent = siege.ask(b"GET / HTTP/1.1\r\nX: ", (b"x" * 65536 for _ in range(1600)))
    assert status == 431 and sent < IN_FLIGHT
    siege.sync()


def test_100_000_headers(siege):
    status, sent = siege.ask(b"GET / HTTP/1.1\r\n", (b"X: y\r\n" * 1000 for _ in range(100)))
    assert status == 431
    siege.sync()


@pytest.mark.parametrize("framing, status", [
    (f"Content-Length: {10**18}", 413),
    (f"Content-Length: {10**30}", 400),
    ("Content-Length: -1", 400),
    ("Content-Length: +5", 400),
    ("Content-Length: 5\r\nContent-Length: 5", 400),
    ("Content-Length: 5, 5", 400),
    ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
    ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
    ("Transfer-Encoding: chunked, chunked", 501),
])
def test_lengths_that_lie(siege, framing, status):
    key = siege.desk.login()
    header = json.dumps({"v": 11, "k": key, "c": "26.09.3,00000000,linux", "s": "abc123"})
    for path in ("/sync/meta", "/sync/upload", "/msync/uploadChanges"):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nanki-sync: {header}\r\n{framing}\r\n\r\n".encode()
        assert siege.ask(head, iter([b"x" * MIB]))[0] == status, path
    siege.sync()


def test_a_body_that_nobody_reads(siege):
    head = f"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: {50 * MIB}\r\n\r\n".encode()
    for _ in range(10):
        status, sent = siege.ask(head, (b"x" * 65536 for _ in range(800)))
        assert status == 404 and sent < IN_FLIGHT
    # Ten at once that do not wait for their answer.
    for _ in range(10):
        sock = siege.connect()
        sock.sendall(head)
        sock.setblocking(False)
        try:
            while sock.send(b"x" * 65536):
                pass
        except (BlockingIOError, ConnectionError):
            pass
    siege.sync()


def test_2000_pipelined_requests(siege):
    sock = siege.connect()
    wire, answers = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2000, 0
    reader = sock.makefile("rb")
    sock.setblocking(False)
    left = memoryview(wire)
    deadline, synced = time.monotonic() + PATIENCE_SECS, False
    tail = b""
    while answers < 2000:
        assert time.monotonic() < deadline, f"{answers} answers"
        readable, writable, _ = select.select([sock], [sock] if left else [], [], 1)
        if writable:
            left = left[sock.send(left):]
        if readable:
            got = sock.recv(65536)
            assert got, f"it ended after {answers} answers"
            tail += got
            # A status line that is cut in two is counted with its other half.
            answers += tail.count(b"HTTP/1.1 200 OK")
            tail = tail[-14:]
        if answers > 500 and not synced:
            siege.sync()
            synced = True
    reader.close()


def test_bodies_that_break_off(siege):
    key = siege.desk.login()
    for n in range(200):
        sock = siege.connect()
        header = json.dumps({"v": 11, "k": key, "c": "26.09.3,00000000,linux", "s": f"abc{n}"})
        framing = ["Content-Length: 5000000", "Transfer-Encoding: chunked"][n % 2]
        path = ["/sync/upload", "/sync/applyChunk", "/msync/uploadChanges"][n % 3]
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nanki-sync: {header}\r\n{framing}\r\n\r\n"
        sock.sendall(head.encode() + [b"", b"8000\r\n"][n % 2] + b"x" * (n * 150))
        if n % 5 == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        sock.close()
        if n % 50 == 0:
            siege.sync()
    siege.sync()


def chunks(first: bytes = b"") -> Iterator[bytes]:
    """Ten gigabytes."""
    if first:
        yield b"%x\r\n%b\r\n" % (len(first), first)
    for _ in range(TEN_GB // 65536):
        yield b"10000\r\n" + b"x" * 65536 + b"\r\n"


def plain(first: bytes = b"") -> Iterator[bytes]:
    yield first
    for _ in range(TEN_GB // 65536):
        yield b"x" * 65536


@pytest.mark.parametrize("method", ["/sync/upload", "/msync/uploadChanges", "/sync/applyChunk"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_ten_gigabytes_with_a_wrong_key(besiege, method, is_chunked):
    siege = besiege(MAX_SYNC_PAYLOAD_MEGS="20")
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {TEN_GB}"
    body = chunks if is_chunked else plain
    header = json.dumps({"v": 11, "k": "0" * 40, "c": "26.09.3,00000000,linux", "s": "abc123"})
    head = f"POST {method} HTTP/1.1\r\nHost: x\r\nanki-sync: {header}\r\n{framing}\r\n\r\n".encode()
    status, sent = siege.ask(head, body())
    assert status == 403 and sent < IN_FLIGHT, sent
    siege.sync()

    form = f"POST {method} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n{framing}\r\n\r\n".encode()
    key = b"--b\r\nContent-Disposition: form-data; name=\"k\"\r\n\r\n" + b"0" * 40 + b"\r\n"
    data = b"--b\r\nContent-Disposition: form-data; name=\"data\"; filename=\"data\"\r\n\r\n"
    status, sent_key_first = siege.ask(form, body(key + data))
    assert status == (403 if is_chunked else 413) and sent_key_first < IN_FLIGHT, sent_key_first
    siege.sync()
    # Whose it is would come last, so this is taken up to the limit, and no further.
    status, sent_data_first = siege.ask(form, body(data))
    assert status == 413 and sent_data_first < (24 * MIB if is_chunked else 0) + IN_FLIGHT, sent_data_first
    siege.sync()
    print(f"taken: {sent} bytes by header, {sent_key_first} with the key first, {sent_data_first} with the data first")
