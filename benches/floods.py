"""Floods and drips, and what they cost somebody else: one row for each, with the latency of a no-change sync of another user.

    sudo nice -n -15 tests/.venv/bin/python benches/floods.py --server PROGRAM [--syncs N] [KIND...]

The server and the real client, of a user of its own, have the priority of this script. Attackers are processes of their own with
the usual one, so that a core that is short goes to server and client: the ratio shows what the flood costs in the server. A
real-time priority shows more: threads of one such priority do not interrupt each other, as they do on a board.
The data folder is an ext4 file system of 128 MiB on a loop device, so it needs root. Each flood begins after a quiet stretch,
whose median is the quiet latency of that row.
"""

import argparse
import base64
import io
import itertools
import json
import os
import random
import resource
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/real"))

DISK_MIB, QUOTA_MIB, RESERVE_MIB = 128, 30, 16
ELSEWHERE = "127.0.0.2"
MIB = 1 << 20
# The beginning of a zstd frame with a window of 2 MiB and a raw block of 128 KiB; zeros that follow it are empty blocks.
FRAME = b"\x28\xb5\x2f\xfd\x00\x58\x00\x00\x10"
NOISE = random.Random(1).randbytes(MIB)


# ---- attackers ----


@dataclass
class Peer:
    """A connection that is opened again whenever it ends. `pieces` is what it sends; it then waits for the answer."""
    pieces: Callable[[], Iterator[bytes]]
    every_secs: float = 0  # between two pieces; 0: as fast as the server takes them
    address: str = ELSEWHERE
    receive_bytes: int = 0
    takes_replies: bool = True  # False: it never reads
    keeps: bool = False  # reads on after the first answer, until the server ends the connection
    reset: bool = False  # ends with a reset as soon as all is sent
    addresses: Iterator[str] | None = None  # a new one for each connection
    sock: socket.socket | None = None
    rest: bytes = b""
    due: float = 0
    left: Iterator[bytes] = field(default_factory=lambda: iter(()))
    done: bool = False


class Attack:
    def __init__(self, port: int, peers: list[Peer]):
        self.port, self.peers, self.opened, self.answers, self.bytes = port, peers, 0, {}, 0
        self.selector = selectors.DefaultSelector()

    def open(self, peer: Peer) -> None:
        self.close(peer)
        sock = socket.socket()
        if peer.receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, peer.receive_bytes)
        if peer.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.setblocking(False)
        sock.bind((next(peer.addresses) if peer.addresses else peer.address, 0))
        sock.connect_ex(("127.0.0.1", self.port))
        peer.sock, peer.left, peer.rest, peer.due, peer.done = sock, peer.pieces(), b"", 0, False
        self.selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)
        self.opened += 1

    def close(self, peer: Peer) -> None:
        if peer.sock:
            self.selector.unregister(peer.sock)
            peer.sock.close()
            peer.sock = None

    def run(self, until: Callable[[], bool]) -> None:
        for peer in self.peers:
            self.open(peer)
        while not until():
            for key, ready in self.selector.select(0.05):
                try:
                    self.step(key.data, ready)
                except OSError:
                    self.open(key.data)
            now = time.monotonic()
            for peer in self.peers:
                if peer.due and peer.due <= now and not peer.done:
                    peer.due = 0
                    self.selector.modify(peer.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)

    def step(self, peer: Peer, ready: int) -> None:
        if ready & selectors.EVENT_READ and peer.takes_replies:
            got = peer.sock.recv(65536)
            if got.startswith(b"HTTP/1.1 "):
                self.answers[got[9:12].decode()] = self.answers.get(got[9:12].decode(), 0) + 1
            if not got or not peer.keeps:
                return self.open(peer)
        if not ready & selectors.EVENT_WRITE:
            return
        if not peer.rest:
            piece = next(peer.left, None)
            if piece is None:
                if peer.reset:
                    return self.open(peer)
                peer.done = True
                events = selectors.EVENT_READ if peer.takes_replies else 0
                self.selector.modify(peer.sock, events or selectors.EVENT_READ, peer) if events else self.forget(peer)
                return
            peer.rest = piece
        if peer.rest:
            sent = peer.sock.send(peer.rest)
            peer.rest, self.bytes = peer.rest[sent:], self.bytes + sent
        if not peer.rest and peer.every_secs:
            peer.due = time.monotonic() + peer.every_secs
            self.selector.modify(peer.sock, selectors.EVENT_READ, peer)

    def forget(self, peer: Peer) -> None:
        """It is open, and neither reads nor writes."""
        self.selector.unregister(peer.sock)
        peer.kept, peer.sock = peer.sock, None


def head(path: str, key: str = "", length: int | None = None, extra: str = "") -> bytes:
    header = json.dumps({"v": 11, "k": key, "c": "26.09.3,00000000,linux", "s": "abc123"})
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nanki-sync: {header}\r\n{extra}{framing}\r\n\r\n".encode()


def form_head(path: str, length: int) -> bytes:
    """A form whose key would come last, so that nobody knows whose it is while its data come."""
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {length}\r\n\r\n"
            "--b\r\nContent-Disposition: form-data; name=\"data\"; filename=\"data\"\r\n\r\n").encode()


def drip(first: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.chain([first], itertools.repeat(piece))


def once(*pieces: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter(pieces)


def blocks(first: bytes, block: bytes, count: int) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.chain([first], itertools.repeat(block, count))


def pieces(first: bytes, body: bytes) -> Iterator[bytes]:
    yield first
    for at in range(0, len(body), 65536):
        yield body[at:at + 65536]


def numbered(make: Callable[[int], bytes]) -> Callable[[], Iterator[bytes]]:
    """One whole request on a connection, another one each time."""
    numbers = itertools.count()
    return lambda: iter([make(next(numbers))])


def zstd(raw: bytes) -> bytes:
    import zstandard
    return zstandard.compress(raw)


def media_bomb() -> bytes:
    """51 KB that unpack to 48 MB."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("_meta", json.dumps([[f"{k}.png", str(k)] for k in range(4)]))
        for k in range(4):
            zipped.writestr(str(k), bytes(12 * MIB))
    return packed.getvalue()


def media_noise(n: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr("_meta", json.dumps([[f"noise{n}-{k}.png", str(k)] for k in range(20)]))
        for k in range(20):
            zipped.writestr(str(k), NOISE[n * 7 % 1000 + k:][:100_000])
    return packed.getvalue()


def whole(path: str, key: str, body: bytes, extra: str = "") -> bytes:
    return head(path, key, len(body), extra) + body


def guess(n: int) -> bytes:
    return whole("/sync/hostKey", "", zstd(json.dumps({"u": f"name{os.getpid()}-{n}", "p": "guess"}).encode()))


def changes() -> bytes:
    """60 MB of config, 6 KB as it is sent."""
    return zstd(json.dumps({"changes": {"models": [], "decks": [[], []], "tags": [], "conf": {"x": "x" * 60_000_000}}}).encode())


def start(key: str) -> bytes:
    return whole("/sync/start", key, zstd(b'{"minUsn":0,"lnewer":true}'))


def frame(raw: bytes, window: int, rle: bool) -> bytes:
    """A zstd frame of blocks that are raw, or one byte repeated, with a window of 2 to the power of `window`."""
    out = [b"\x28\xb5\x2f\xfd\x00", bytes([window - 10 << 3])]
    for at in range(0, len(raw), 1 << 17):
        block = raw[at:at + (1 << 17)]
        last = at + (1 << 17) >= len(raw)
        out += [(len(block) << 3 | (2 if rle else 0) | last).to_bytes(3, "little"), block[:1] if rle else block]
    return b"".join(out)


def wide(size: int) -> bytes:
    return frame(b" " * size, 23, True)


def wide_noise(size: int) -> bytes:
    return frame(NOISE * (size // MIB) + NOISE[:size % MIB], 23, False)


def zstd_raw(raw: bytes) -> bytes:
    return frame(raw, 21, False)


CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
OWN = "127.0.0.1"


def many_addresses() -> Iterator[str]:
    return (f"127.0.{10 + n % 8}.{1 + n // 8 % 250}" for n in itertools.count())


# name: (what it is, the issue's fault or "flood", its peers of these keys)
KINDS: dict[str, tuple[str, Callable[[list[str]], list[Peer]]]] = {
    "drip-logins": ("7: 4 login bodies, 120 B/s each", lambda keys: [
        Peer(drip(head("/sync/hostKey", "", 60_000) + FRAME.ljust(9000, b"\0"), bytes(60)), 0.5) for _ in range(4)]),
    "drip-small": ("8: 6 small bodies of one key, 140 B/s", lambda keys: [
        Peer(drip(head("/sync/applyChunk", keys[0], 60_000) + FRAME.ljust(9000, b"\0"), bytes(70)), 0.5) for _ in range(6)]),
    "drip-large": ("8: 6 long bodies of one key, 140 B/s", lambda keys: [
        Peer(drip(head("/sync/applyChunk", keys[0], 10_000_000) + FRAME.ljust(70_000, b"\0"), bytes(70)), 0.5) for _ in range(6)]),
    "slow-uploads": ("8: 2 uploads of one key, 20 kB/s", lambda keys: [
        Peer(drip(head("/sync/upload", keys[0], 10_000_000) + FRAME.ljust(70_000, b"\0"), bytes(4000)), 0.2) for _ in range(2)]),
    "no-readers": ("8: 12 downloads of one key, not read", lambda keys: [
        Peer(once(whole("/sync/download", keys[0], zstd(b"{}"))), receive_bytes=2048, takes_replies=False) for _ in range(12)]),
    "forms-520": ("9: 520 forms of 9 KB, one address", lambda keys: [
        Peer(drip(form_head("/sync/applyChunk", 60_000) + b"x" * 9000, b"x" * 60), 0.5) for _ in range(520)]),
    "forms-520-own": ("9: the same from the client's address", lambda keys: [
        Peer(drip(form_head("/sync/applyChunk", 60_000) + b"x" * 9000, b"x" * 60), 0.5, OWN) for _ in range(520)]),
    "media-bombs": ("10: zips of 51 KB that unpack to 48 MB", lambda keys: [
        Peer(once(whole("/msync/uploadChanges", key, bomb))) for bomb in [zstd(media_bomb())] for key in keys for _ in range(2)]),
    "media-fill": ("10: zips of 2 MB noise, 3 keys", lambda keys: [
        Peer(numbered(lambda n, key=key: whole("/msync/uploadChanges", key, zstd(media_noise(n))))) for key in keys]),
    "changes-60MB": ("10: `applyChanges` of 60 MB, packed", lambda keys: [
        Peer(lambda key=key, body=body: itertools.cycle([start(key), whole("/sync/applyChanges", key, body)]), keeps=True)
        for body in [changes()] for key in keys]),
    "late-keys": ("10: 8 forms of 60 MB, the key last", lambda keys: [
        Peer(blocks(form_head("/msync/uploadChanges", 60 * MIB), b"x" * 65536, 960)) for _ in range(8)]),
    "guesser": ("12: a guess in 2 s, the client's address", lambda keys: [
        Peer(lambda numbers=itertools.count(): iter([b"", guess(next(numbers))]), 2.0, OWN)]),
    "guessers": ("12: 8 that guess on end, the client's address", lambda keys: [
        Peer(numbered(guess), address=OWN) for _ in range(8)]),
    "half-open": ("flood: 500 half-open connections", lambda keys: [
        Peer(once([b"GET", b"POST /sy", b"POST /sync/meta HTTP/1.1\r\nHost: x\r\nanki-sync: {"][n % 3])) for n in range(500)]),
    "burst": ("flood: connections on end, each reset", lambda keys: [
        Peer(once(b"POST /sy"), reset=True) for _ in range(64)]),
    "burst-many": ("flood: the same from 2000 addresses", lambda keys: [
        Peer(once(b"POST /sy"), reset=True, addresses=many_addresses()) for _ in range(64)]),
    "silent-many": ("flood: 600 silent connections of 600 addresses", lambda keys: [
        Peer(once(b"G"), address=f"127.0.{10 + n // 250}.{1 + n % 250}") for n in range(600)]),
    "slow-heads": ("flood: 100 heads and 100 bodies that drip", lambda keys: [
        Peer(drip(b"POST /sync/meta HTTP/1.1\r\nX: ", b"x"), 0.5) for _ in range(100)] + [
        Peer(drip(form_head("/sync/applyChunk", 60_000), b"x"), 0.5) for _ in range(100)]),
    "long-line": ("flood: header lines of 100 MB", lambda keys: [
        Peer(blocks(b"GET / HTTP/1.1\r\nX: ", b"x" * 65536, 1600)) for _ in range(16)]),
    "headers": ("flood: 100 000 headers", lambda keys: [
        Peer(blocks(b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 1000, 100)) for _ in range(16)]),
    "lying": ("flood: lengths that lie", lambda keys: [
        Peer(once(head("/sync/meta", keys[0], extra=lie), b"x" * MIB)) for _ in range(4)
        for lie in (f"Content-Length: {10**18}\r\n", "Content-Length: -1\r\n", "Content-Length: 5\r\nContent-Length: 6\r\n", "Transfer-Encoding: chunked\r\n")]),
    "unread-bodies": ("flood: bodies of 50 MB that nobody reads", lambda keys: [
        Peer(blocks(head("/nothing", "", 50 * MIB), b"x" * 65536, 800)) for _ in range(16)]),
    "pipeline": ("flood: pipelined `/health`, 8 connections", lambda keys: [
        Peer(drip(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 200, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 200), keeps=True) for _ in range(8)]),
    "broken-off": ("flood: bodies that break off", lambda keys: [
        Peer(once(head(path, keys[0], 5_000_000) + FRAME.ljust(size, b"\0")), reset=True)
        for path in ("/sync/upload", "/sync/applyChunk", "/msync/uploadChanges") for size in (100, 30_000, 70_000)]),
    "wrong-key": ("flood: 10 GB with a wrong key", lambda keys: [
        Peer(blocks(head(path, "0" * 40), CHUNK, 10**9 // 6554)) for path in ("/sync/upload", "/msync/uploadChanges", "/sync/applyChunk") for _ in range(4)]),
    "meta-200": ("flood: whole `meta` of one key, 200 connections", lambda keys: [
        Peer(lambda key=keys[0]: itertools.repeat(whole("/sync/meta", key, b" " * 9000)), keeps=True) for _ in range(200)]),
    "meta-good": ("flood: `meta` that is answered, one key, 16 connections", lambda keys: [
        Peer(once(whole("/sync/meta", keys[0], zstd(b'{"v":11,"cv":"anki,26.09.3 (29bb700b),linux"}')))) for _ in range(16)]),
    "no-key": ("flood: whole `meta` without a key, 64 connections", lambda keys: [
        Peer(once(whole("/sync/meta", "0" * 40, zstd(b'{"v":11}')))) for _ in range(64)]),
    "downloads": ("flood: downloads on end, one key", lambda keys: [
        Peer(lambda key=key: itertools.repeat(whole("/sync/download", key, zstd(b"{}"))), keeps=True) for key in keys[:1] * 4]),
    "syncs": ("flood: `start` and full chunks on end, one key", lambda keys: [
        Peer(lambda key=key: itertools.cycle([start(key), *[whole("/sync/chunk", key, zstd(b"{}"))] * 3]), keeps=True) for key in keys[:1] * 4]),
    "windows-small": ("memory: small bodies with windows of 8 MiB, 3 keys", lambda keys: [
        Peer(once(whole("/sync/applyChunk", key, wide(12 * MIB)))) for key in keys for _ in range(4)]),
    "windows-large": ("memory: 6 media uploads with windows of 8 MiB, 3 keys", lambda keys: [
        Peer(lambda key=key: pieces(head("/msync/uploadChanges", key, len(body)), body), 0.01) for body in [wide_noise(9 * MIB)]
        for key in keys for _ in range(2)]),
    "zips-in-memory": ("memory: 6 zips of 2.9 MB that stop before their end, 3 keys", lambda keys: [
        Peer(lambda key=key: itertools.chain([head("/msync/uploadChanges", key, 2_900_100) + zstd_raw(media_noise(1).ljust(2_900_000, b"x"))[:2_899_000]],
             itertools.repeat(b"", 10**9)), 0.5) for key in keys for _ in range(2)]),
}


# These come last, as they leave no room under the quota.
FILLING = ("media-fill", "changes-60MB", "late-keys")


def attack(kind: str, port: int, keys: list[str]) -> None:
    """The attacker's process: until its standard input closes."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    attack = Attack(port, KINDS[kind][1](keys))
    print("begun", flush=True)
    attack.run(over.is_set)
    print(json.dumps({"opened": attack.opened, "answers": attack.answers, "mb": attack.bytes / 1e6, "cpu": time.process_time()}), flush=True)


# ---- the one whose syncs are measured ----


class Watch:
    """Most memory and disk that the server ever had since `begin`, looked at ten times a second."""

    def __init__(self, pid: int, base: Path):
        self.pid, self.base, self.anon_kib, self.least_free = pid, base, 0, 1 << 40
        threading.Thread(target=self.run, daemon=True).start()

    def begin(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        self.anon_kib, self.least_free = 0, 1 << 40

    def run(self) -> None:
        while os.path.ismount(self.base):
            self.anon_kib = max(self.anon_kib, self.status("RssAnon"))
            disk = os.statvfs(self.base)
            self.least_free = min(self.least_free, disk.f_bavail * disk.f_frsize)
            time.sleep(0.1)

    def status(self, name: str) -> int:
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith(name + ":")), 0)

    def cpu(self) -> float:
        ticks = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


def latencies(device, count: int, at_least_secs: float) -> tuple[list[float], list[str]]:
    taken, refused, began = [], [], time.monotonic()
    while len(taken) < count or time.monotonic() - began < at_least_secs:
        start = time.monotonic()
        try:
            device.sync()
        except Exception as err:  # what a real client shows its user
            refused.append(str(err)[:80])
        taken.append(time.monotonic() - start)
        time.sleep(0.002)
    return taken, refused


def of_user(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "backups" not in path.parts)


def measure(names: list[str], syncs: int, work: Path, base: Path) -> bool:
    from account import Account
    from server import Server
    people = ["anna", "cleo", "dora"]
    server = Server(base, [f"{name}:secret" for name in [*people, "bob"]], SYNC_QUOTA_MEGS=str(QUOTA_MIB))
    accounts = {name: Account(server, name, "secret", work / "devices") for name in [*people, "bob"]}
    keys, good = [], True
    noise = random.Random(2)
    for name in people:
        device = accounts[name].device("desk")
        for n in range(300):
            device.add_note(f"big {n}", base64.b85encode(noise.randbytes(16_000)).decode())
        device.upload()
        keys.append(device.login())
    desk, phone = accounts["bob"].two_devices()
    desk.sync()
    phone.sync()
    watch = Watch(server.process.pid, base)
    print("| kind | quiet ms: median, p90 | under it: median, p90, most | ratio | refused | a login s | server CPU | VmHWM | RssAnon | most MB of a user | least free |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in names:
        latencies(phone, 10, 0)
        quiet, _ = latencies(phone, syncs, 0)
        watch.begin()
        attacker = subprocess.Popen([sys.executable, __file__, "--attack", name, str(server.port), *keys],
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        attacker.stdout.readline()
        time.sleep(1)  # until the flood is there
        cpu, began = watch.cpu(), time.monotonic()
        now, refused = latencies(phone, syncs, 3)
        cpu = (watch.cpu() - cpu) / (time.monotonic() - began)
        began = time.monotonic()
        try:
            accounts["bob"].device(f"{name}{time.monotonic_ns()}").login()
            login = f"{time.monotonic() - began:.2f}"
        except Exception as err:
            login = "refused"
            refused.append(str(err)[:80])
        most = max(of_user(base / name) for name in people) / 1e6
        peak, anon, free = watch.status("VmHWM"), watch.anon_kib, watch.least_free / 1e6
        attacker.stdin.close()
        did = json.loads(attacker.stdout.readline())
        attacker.wait()
        ms = lambda of: f"{1000 * statistics.median(of):.1f}, {1000 * sorted(of)[len(of) * 9 // 10]:.1f}"
        ratio = statistics.median(now) / statistics.median(quiet)
        p90 = sorted(now)[len(now) * 9 // 10] / sorted(quiet)[len(quiet) * 9 // 10]
        print(f"| {name}: {KINDS[name][0]} | {ms(quiet)} | {ms(now)}, {1000 * max(now):.0f} | {ratio:.1f}, {p90:.1f} | {len(refused)} of {len(now) + 1} | {login} "
              f"| {cpu:.2f} | {peak / 1024:.1f} | {anon / 1024:.1f} | {most:.0f} | {free:.0f} |", flush=True)
        print(f"  {name}: {did['opened']} connections, {did['mb']:.0f} MB sent, {did['cpu']:.1f} s of CPU, answers {did['answers']} {sorted(set(refused))}", file=sys.stderr, flush=True)
        good &= ratio <= 3 and not refused and peak < 16 << 10 and most <= QUOTA_MIB * 1.049 + 4.2 and free >= RESERVE_MIB - 4
        time.sleep(1.5)  # what lingers of it goes
    desk.add_note("after all")
    desk.sync()
    phone.sync()
    assert "after all" in phone.fronts()
    for account in accounts.values():
        account.close()
    server.stop()
    return good


def main() -> None:
    if sys.argv[1:2] == ["--attack"]:
        return attack(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--server", required=True)
    options.add_argument("--syncs", type=int, default=200)
    options.add_argument("kinds", nargs="*")
    chosen = options.parse_args()
    os.environ["ANKIPI_BIN"] = str(Path(chosen.server).resolve())
    work = Path(tempfile.mkdtemp(prefix="floods"))
    base = work / "data"
    base.mkdir()
    with open(work / "disk", "wb") as disk:
        disk.truncate(DISK_MIB * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", work / "disk"], check=True)
    subprocess.run(["mount", "-o", "loop", work / "disk", base], check=True)
    try:
        (base / "lost+found").rmdir()
        good = measure(chosen.kinds or sorted(KINDS, key=FILLING.__contains__), chosen.syncs, work, base)
    finally:
        subprocess.run(["umount", "-l", base], check=True)
        subprocess.run(["rm", "-r", work], check=True)
    print("every flood within its limits" if good else "NOT within its limits")


if __name__ == "__main__":
    main()
