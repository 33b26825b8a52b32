"""An hour of four users, each with two real devices, on one server whose disk fails now and then, whose clients' lines
are cut, and which strangers bother meanwhile: nothing is lost, and at the end the server is what it was at the beginning.

    SOAK_MINUTES=60 tests/.venv/bin/python -m pytest -s tests/real/test_soak.py

SOAK_SEED=7 is another hour, and SOAK_SHARE says how much of one core server and clients may take (0.4). The short form of half
a minute is the same with less of it.
"""

import contextlib
import hashlib
import mmap
import os
import random
import resource
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from anki.errors import BackendError

from device import FULL_SYNC, FULL_UPLOAD, NO_CHANGES, Device
from figures import Figures, until
from proxy import CUT, Proxy, chunk
from rows import USNS
from server import ANKIPI, phc
from test_media import delete, held, put, replace, sync_media
from wire import headers

SECS = float(os.environ.get("SOAK_MINUTES", "0.5")) * 60
SEED = int(os.environ.get("SOAK_SEED", "1"))
CORE_SHARE = float(os.environ.get("SOAK_SHARE", "0.4"))
PEOPLE = ["anna", "bob", "carl", "dora"]
# She has an account, and no device of ours: what strangers do with a good key they do with hers.
EVE = "eve"
PASSWORD = "secret"
# What each person keeps about, so that only a server that keeps too much grows.
NOTES, MEDIA_FILES, REVIEWS = 150, 30, 300
# Replaced collections are kept: three for each user (SYNC_BACKUPS).
BACKUPS = 3
BUDGET_KIB = 16 * 1024
# In an hour of 300 000 requests this is 7 bytes each. For the least of a quarter half a minute is too short: glibc keeps what the
# busiest moment needed until nothing was asked for a second, and that moment may come late.
GROWTH_KIB, GROWTH_SECS = 2048, 600
# At rest after a short run, beyond what it was at the start: what is known of five users, and pages of which glibc keeps a freed
# piece for each thread. These are more after a long run (3.9 MiB after 14 minutes), though no more is in use (heaptrack).
REST_KIB = 3072
# Longer than media stay open without use.
CALM_SECS = 60
# What requests make and delete.
LEFTOVERS = ("spool-", ".upload-", ".schema11-", ".new", ".pending", "-wal", "-shm", "-journal")

pytestmark = [pytest.mark.ours, pytest.mark.slow]


class Disk:
    """The disk of tests/durability/disk.c. A program that is linked statically does not load it, and has a sound one."""

    ONCE, FROM, ERRORS = 1, 2, (5, 28)  # EIO, ENOSPC

    def __init__(self, folder: Path, base: Path):
        library, control = folder / "disk.so", folder / "control"
        source = Path(__file__).parents[1] / "durability/disk.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        control.write_bytes(bytes(mmap.PAGESIZE))
        with open(control, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), 16)
        self.env = {"LD_PRELOAD": str(library), "DISK_BASE": str(base), "DISK_CONTROL": str(control)}
        self.is_faulty = False
        self.faults = 0

    def fail(self, mode: int, countdown: int, error: int) -> None:
        self.is_faulty = True
        self.faults += 1
        # The mode last: it is what the others are looked at for.
        for at, value in ((4, countdown), (8, error), (0, mode)):
            struct.pack_into("=i", self.page, at, value)

    def mend(self) -> None:
        struct.pack_into("=i", self.page, 0, 0)
        self.is_faulty = False

    @property
    def hits(self) -> int:
        return struct.unpack_from("=i", self.page, 12)[0]


class Soak:
    """What all have in common: the server, the end, the pace, and what was done."""

    def __init__(self, server, disk: Disk):
        self.server, self.disk = server, disk
        self.began, self.cpu_before = time.monotonic(), self.cpu_secs()
        self.done, self.failed = Counter(), Counter()
        self.failures: list[BaseException] = []

    @property
    def is_over(self) -> bool:
        return bool(self.failures) or self.elapsed() > SECS

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def cpu_secs(self) -> float:
        """Of the server and of this process."""
        fields = Path(f"/proc/{self.server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rest(self) -> None:
        """Keeps the load to its share of the machine."""
        while not self.is_over and self.cpu_secs() - self.cpu_before > CORE_SHARE * self.elapsed():
            time.sleep(0.05)

    def run(self, work) -> threading.Thread:
        def until_over():
            try:
                while not self.is_over:
                    work()
                    self.rest()
            except BaseException as err:
                self.failures.append(err)

        thread = threading.Thread(target=until_over, name=str(work))
        thread.start()
        return thread


class Person:
    """Works on two devices in turn, and knows what must be on the server."""

    def __init__(self, soak: Soak, account, seed: int):
        self.soak, self.account, self.dice = soak, account, random.Random(seed)
        self.devices = account.two_devices()
        self.proxy = Proxy(soak.server)
        self.devices[1].use(self.proxy.url)
        # Notes that a device was told are on the server, and those that were ever deleted.
        self.acknowledged, self.gone = set(self.ids(self.devices[0])), set()
        # A device's own files: no other adds or deletes those.
        self.files: dict[str, dict[str, str]] = {device.name: {} for device in self.devices}
        self.names = 0
        self.edited: dict[int, int] = {}
        # A failure may be the cause of the next one, as when the client finds that its upload arrived after all.
        self.is_in_doubt = False
        # How often the person decides for their device, where it differs too much from the server.
        self.uploads = 0.5

    @staticmethod
    def ids(device: Device) -> set[int]:
        return set(device.col.db.list("select id from notes"))

    def step(self) -> None:
        device = self.dice.choice(self.devices)
        job = self.dice.choices([self.sync, self.upload, self.download, self.media, self.log_in], [60, 6, 6, 25, 3])[0]
        self.go(job, device)

    def go(self, job, device: Device) -> None:
        faults, was_faulty = self.soak.disk.faults, self.soak.disk.is_faulty
        is_cut = device is self.devices[1] and self.dice.random() < 0.15 and self.cut_line(job)
        try:
            job(device)
        except BackendError as err:
            excused = is_cut or was_faulty or self.soak.disk.faults > faults or self.is_in_doubt
            if not excused:
                raise AssertionError(f"{self.account.user} on {device.name}: {job.__name__} failed without a reason") from err
            self.is_in_doubt = True
            self.soak.failed[job.__name__] += 1
        else:
            self.is_in_doubt = False
            self.soak.done[job.__name__] += 1
        finally:
            self.proxy.events.clear()
            self.proxy.mend()

    def cut_line(self, job) -> bool:
        methods = {"sync": ["meta", "start", "applyGraves", "applyChanges", "chunk", "applyChunk", "sanityCheck2", "finish"],
                   "media": ["begin", "mediaChanges", "downloadFiles", "uploadChanges", "mediaSanity"]}
        method = self.dice.choice(methods.get(job.__name__, [job.__name__]))
        self.proxy.events[method, self.dice.choice(["before", "after", "midway"])] = lambda: CUT
        return True

    # jobs

    def sync(self, device: Device) -> None:
        self.work(device)
        required = device.try_sync()
        if required == NO_CHANGES:
            self.check_acknowledged(device)
        elif required == FULL_UPLOAD or (required == FULL_SYNC and self.dice.random() < self.uploads):
            self.upload(device)
        else:
            self.download(device)

    def upload(self, device: Device) -> None:
        if device.count("revlog") > REVIEWS:
            device.col.db.execute("delete from revlog")
        ids = self.ids(device)
        try:
            device.upload()
        except BackendError:
            # It may have arrived or not.
            self.acknowledged &= ids
            raise
        self.acknowledged = ids

    def download(self, device: Device) -> None:
        device.download()
        self.check_acknowledged(device)

    def check_acknowledged(self, device: Device) -> None:
        ids = self.ids(device)
        lost = self.acknowledged - ids - self.gone
        assert not lost, f"{self.account.user}: {device.name} lacks {len(lost)} notes that were acknowledged"
        self.acknowledged = ids

    def log_in(self, device: Device) -> None:
        device.login()

    def media(self, device: Device) -> None:
        # A client that has not heard of its own last upload prefers what the server has to what was changed here since.
        sync_media(device)
        sync_media(device)
        self.check_own_files(device)
        own = self.files[device.name]
        for _ in range(self.dice.randint(0, 8)):
            data = self.dice.randbytes(self.dice.choice([100, 10_000, 100_000]))
            name = self.dice.choice(sorted(own)) if own and self.dice.random() < 0.6 else self.new_name(device)
            if name not in own:
                assert put(device, name, data) == name
            elif len(own) > MEDIA_FILES // 2 or self.dice.random() < 0.3:
                delete(device, name)
                del own[name]
                continue
            else:
                replace(device, name, data)
            own[name] = hashlib.sha1(data).hexdigest()
        device.col.media.empty_trash()
        sync_media(device)

    def new_name(self, device: Device) -> str:
        """No name is used again: the old file may come back from the other device, and then the client prefers it."""
        self.names += 1
        return f"{device.name} {self.names}"

    def check_own_files(self, device: Device) -> None:
        """A file that was deleted may come back. When a client hears of its own deletions, as after an answer that was lost,
        it forgets the other deletions in the same list, and sends those files again."""
        now = {name: digest for name, digest in held(device).items() if name.startswith(device.name)}
        assert self.files[device.name].items() <= now.items(), f"{self.account.user}: {device.name} lost media of its own"
        self.files[device.name] = now

    def work(self, device: Device) -> None:
        """What a person does between two syncs."""
        ids = sorted(self.ids(device))
        kind = self.dice.randrange(6)
        if len(ids) > NOTES:
            kind = 0
        if kind == 0 and len(ids) > 3:
            doomed = self.dice.sample(ids, len(ids) * 2 // 3)
            self.gone.update(doomed)
            device.col.remove_notes(doomed)
        elif kind == 1:
            device.add_notes(self.dice.choice([5, 60]), "many")
        elif kind == 2 and ids:
            device.col.sched.set_due_date([card for note in self.dice.sample(ids, min(5, len(ids)))
                                           for card in device.col.get_note(note).card_ids()], "0")
        elif kind == 3 and ids:
            note = device.col.get_note(self.dice.choice(ids))
            # Of two versions of the same second, as no two people make them, each side keeps its own.
            if self.edited.get(note.id) != int(time.time()):
                self.edited[note.id] = int(time.time())
                note.fields[1] = self.text()
                device.col.update_note(note)
        elif kind == 4:
            device.add_note(f"one {time.monotonic_ns()}", self.text(), tags=f"tag{self.dice.randrange(20)}",
                            deck=f"deck{self.dice.randrange(5)}")

    def text(self) -> str:
        return self.dice.randbytes(self.dice.choice([10, 1000, 100_000])).hex()

    # the end

    def settle(self) -> None:
        """All is well again: everything that was acknowledged is on both devices and on a fresh one."""
        self.uploads = 0
        desk, phone = self.devices
        for device in (desk, phone, desk, phone):
            # The first may still have to find that an upload of before its end had arrived.
            with contextlib.suppress(BackendError):
                self.sync(device)
        for device in (desk, phone):
            self.sync(device)
        fresh = self.account.settle(desk, phone, ignoring=USNS)
        self.check_acknowledged(fresh)
        for device in (desk, phone, desk, fresh):
            sync_media(device)
        own = self.files["desk"] | self.files["phone"]
        for device in (desk, phone, fresh):
            assert own.items() <= held(device).items(), f"{self.account.user}: {device.name} lacks media"
        self.proxy.close()


class Strangers:
    """From addresses of their own, one at a time."""

    def __init__(self, soak: Soak, hkey: str):
        self.soak, self.hkey, self.dice = soak, hkey, random.Random(SEED)

    def step(self) -> None:
        act = self.dice.choice([self.break_off, self.wrong_key, self.wrong_password, self.slow_body, self.slow_reader,
                                self.half_open, self.nonsense, self.leave_a_sync, self.slow_form])
        with contextlib.suppress(ConnectionError):
            act()
        self.soak.done["stranger: " + act.__name__] += 1
        self.soak.rest()
        time.sleep(0.2)  # they come now and then

    @contextlib.contextmanager
    def connection(self):
        address = f"127.0.0.{self.dice.randint(2, 250)}"
        with socket.create_connection(("127.0.0.1", self.soak.server.port), timeout=60, source_address=(address, 0)) as sock:
            yield sock
            if self.dice.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset

    def head(self, path: str, hkey: str, skey: str = "abc123") -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers(hkey, skey).items())
        return f"POST {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()

    def ask(self, path: str, body: bytes, hkey: str, skey: str = "abc123") -> int:
        with self.connection() as sock:
            sock.sendall(self.head(path, hkey, skey) + chunk(zstandard.compress(body)) + chunk(b""))
            return int(sock.recv(4096).split(b" ", 2)[1])

    def path(self) -> str:
        return self.dice.choice(["/sync/upload", "/sync/applyChunk", "/msync/uploadChanges"])

    def break_off(self) -> None:
        with self.connection() as sock:
            noise = zstandard.compress(self.dice.randbytes(self.dice.choice([1000, 2_000_000])))
            sock.sendall(self.head(self.path(), self.hkey) + chunk(noise)[:-self.dice.randint(3, 900)])

    def wrong_key(self) -> None:
        assert self.ask(self.path(), b"{}", "0" * 40) in (403, 503)

    def wrong_password(self) -> None:
        assert self.ask("/sync/hostKey", b'{"u":"eve","p":"guess"}', "") in (403, 429, 503)

    def slow_body(self) -> None:
        with self.connection() as sock:
            sock.sendall(self.head(self.path(), self.hkey))
            for _ in range(8):
                sock.sendall(chunk(self.dice.randbytes(10)))
                time.sleep(0.2)  # the drip

    def slow_form(self) -> None:
        with self.connection() as sock:
            sock.sendall(b"POST /sync/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                         b"Content-Length: 900000\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"data\"; filename=\"data\"\r\n\r\n")
            for _ in range(8):
                sock.sendall(self.dice.randbytes(30_000))
                time.sleep(0.2)  # the drip

    def slow_reader(self) -> None:
        with self.connection() as sock:
            sock.sendall(self.head("/sync/download", self.hkey) + chunk(zstandard.compress(b"{}")) + chunk(b""))
            sock.recv(1000)
            time.sleep(1)  # the slow line

    def half_open(self) -> None:
        with contextlib.ExitStack() as stack:
            for n in range(50):
                stack.enter_context(self.connection()).sendall([b"", b"POST /sy", b"POST /sync/meta HTTP/1.1\r\nHost: x\r\n"][n % 3])

    def nonsense(self) -> None:
        with self.connection() as sock:
            sock.sendall(self.dice.randbytes(self.dice.choice([10, 2000, 50_000])) + b"\r\n\r\n")
            sock.recv(4096)

    def leave_a_sync(self) -> None:
        skey = f"s{self.dice.random()}"
        self.ask("/sync/start", b'{"minUsn":0,"lnewer":true,"graves":null}', self.hkey, skey)
        self.ask("/sync/applyGraves", b'{"chunk":{"cards":[],"notes":[1,2,3],"decks":[]}}', self.hkey, skey)


class Saboteur:
    """Makes the disk fail now and then."""

    def __init__(self, soak: Soak):
        self.soak, self.dice = soak, random.Random(SEED + 1)

    def step(self) -> None:
        self.wait(self.dice.uniform(1, 3))
        disk = self.soak.disk
        disk.fail(self.dice.choice([disk.ONCE, disk.FROM]), self.dice.randint(1, 40), self.dice.choice(disk.ERRORS))
        self.wait(self.dice.uniform(0.2, 1))
        disk.mend()

    def wait(self, secs: float) -> None:
        end = time.monotonic() + secs
        while time.monotonic() < end and not self.soak.is_over:
            time.sleep(0.05)  # how often the disk fails


class Gauge:
    """Looks at the server, and tells once a minute what it sees."""

    def __init__(self, soak: Soak):
        self.soak = soak
        self.seen: list[Figures] = []
        self.told = 0.0
        print("\nminute   RSS  anon  peak  fds thr  disk MB  steps failed  faults  core %")

    def look(self) -> None:
        soak = self.soak
        now = Figures.of(soak.server)
        self.seen.append(now)
        if soak.elapsed() - self.told > min(60, SECS / 6):
            self.told = soak.elapsed()
            share = (soak.cpu_secs() - soak.cpu_before) / soak.elapsed() * 100
            print(f"{soak.elapsed() / 60:6.1f} {now.rss_kib:5} {now.anon_kib:5} {now.peak_kib:5} {now.descriptors:4} {now.threads:3} "
                  f"{sum(now.files.values()) / 1e6:8.1f} {sum(soak.done.values()):6} {sum(soak.failed.values()):6} "
                  f"{soak.disk.hits:7} {share:6.0f}", flush=True)
        time.sleep(max(0.1, SECS / 3600))  # between two looks

    def quarters(self, of) -> list[list[int]]:
        """After a tenth for warming up."""
        values = [of(figures) for figures in self.seen][len(self.seen) // 10:]
        size = len(values) // 4
        return [values[n * size:(n + 1) * size] for n in range(4)]

    def check(self) -> None:
        anon = self.quarters(lambda figures: figures.anon_kib)
        means, floors = [statistics.mean(quarter) for quarter in anon], [statistics.quantiles(quarter, n=20)[0] for quarter in anon]
        print(f"RssAnon by quarters: mean {[round(mean) for mean in means]} KiB, floor {[round(floor) for floor in floors]} KiB")
        assert means[3] <= means[0] + GROWTH_KIB, "memory grows"
        assert SECS < GROWTH_SECS or floors[3] <= floors[0] + GROWTH_KIB, "memory grows"


def bound_of_disk(files: dict[str, int]) -> int:
    """What the policy says that there may be: each user's collection and as many replaced ones, each of at most the size of
    the largest; media; and little else."""
    bound = 0
    for user in [*PEOPLE, EVE]:
        own = {name: size for name, size in files.items() if name.startswith(f"{user}/")}
        largest = max((size for name, size in own.items() if ".anki2" in name), default=0)
        media = sum(size for name, size in own.items() if "/media" in name)
        bound += (1 + BACKUPS) * largest + media + 64 * 1024
    return bound


def test_four_users_for_a_while(new_server, new_account, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    base = tmp_path / "base0"
    disk, hashed = Disk(tmp_path, base), phc(PASSWORD)
    server = new_server(*(f"{name}:{hashed}" for name in [*PEOPLE, EVE]), PASSWORDS_HASHED="1", SYNC_SESSION_SECS="5", **disk.env)
    assert server.base == base
    idle = Figures.of(server)
    accounts = [new_account(server, name) for name in PEOPLE]
    eve = new_account(server, EVE)
    soak = Soak(server, disk)
    people = [Person(soak, account, SEED * 100 + n) for n, account in enumerate(accounts)]
    eves = eve.device("eves")
    for n in range(10):
        eves.add_note(f"big {n}", random.Random(n).randbytes(300_000).hex())
    eves.upload()
    soak.began, soak.cpu_before = time.monotonic(), soak.cpu_secs()
    gauge = Gauge(soak)
    threads = [soak.run(person.step) for person in people]
    threads += [soak.run(Strangers(soak, eves.auth.hkey).step), soak.run(Saboteur(soak).step)]
    while not soak.is_over:
        gauge.look()
    for thread in threads:
        thread.join()
    disk.mend()
    print(f"done: {dict(sorted(soak.done.items()))}\nfailed for a reason: {dict(sorted(soak.failed.items()))}")
    if soak.failures:
        raise soak.failures[0]
    for person in people:
        person.settle()
    for account in accounts + [eve]:
        account.close()
    calm = until(lambda: Figures.of(server), lambda now: is_calm(now, idle), CALM_SECS)
    print(f"idle before: {idle.rss_kib} KiB, of that {idle.anon_kib} anonymous, {idle.threads} threads, {idle.descriptors} descriptors; "
          f"after: {calm.rss_kib}, {calm.anon_kib}, {calm.threads}, {calm.descriptors}; peak {calm.peak_kib} KiB")
    print(f"disk: {sum(calm.files.values())} bytes of at most {bound_of_disk(calm.files)}; {disk.hits} operations failed in {disk.faults} times")
    assert is_calm(calm, idle)
    assert sum(calm.files.values()) <= bound_of_disk(calm.files) + sum(calm.files[name] for name in leftovers(calm))
    assert calm.peak_kib <= BUDGET_KIB
    assert "panicked" not in server.log()
    assert disk.hits or b"ld-linux" not in ANKIPI.read_bytes()[:4096], "the disk never failed"
    gauge.check()
    # What the disk did not let it delete goes at the next start.
    print(f"left until the next start: {len(leftovers(calm))} files")
    server.stop()
    server.start()
    assert not leftovers(Figures.of(server))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def leftovers(now: Figures) -> list[str]:
    return [name for name in now.files if any(mark in name for mark in LEFTOVERS) and not name.startswith(tuple(f"{user}/media/" for user in PEOPLE))]


def is_calm(now: Figures, idle: Figures) -> bool:
    is_small = SECS >= GROWTH_SECS or now.anon_kib <= idle.anon_kib + REST_KIB
    return is_small and now.threads <= idle.threads and now.descriptors <= idle.descriptors
