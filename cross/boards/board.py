"""Boots an emulated board and uses the ankipi on it as people would; cross/boards/boot.sh prepares what it is given.

Real Anki clients sync with it through the emulator's network; what only the board knows (memory, uptime) comes over its
serial line, on which cross/boards/commands listens.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests/real"))

import pytest  # noqa: E402  the helpers of the stories fail with it
from account import NOT_SYNCED, Account  # noqa: E402
from rows import assert_same, rows  # noqa: E402
from server import free_port  # noqa: E402
from test_media import held, put, settle as settle_media, sync_media  # noqa: E402

MIB = 1024 * 1024
BOOT_SECS = 120  # seconds; a busy machine emulates slowly
BENCH_SECS = 3 * 60 * 60
# What the server is allowed beyond what kernel and busybox need, MB.
HEADROOM = 8
# The smallest memory with which a board with Debian's kernel has booted, MB.
SMALLEST = 24


class BoardError(Exception):
    """A check on the board failed."""


class StoryOver(Exception):
    """After a step that failed."""


class Board:
    """An emulated machine. `memory` is what the kernel is told that there is, MB: the emulator has more, since it puts
    kernel and device tree where small boards have no memory."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.memory, self.port = options, options.memory, free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.said, self.show = b"", False
        self.machine: subprocess.Popen | None = None

    def boot(self, server: bool = True) -> None:
        """Switches it on, and waits until it listens to commands."""
        options, initramfs = self.options, Path(self.options.initramfs)
        # At the end of the memory and not where the emulator would put it, which may be beyond.
        size = initramfs.stat().st_size
        start = options.ram_start + self.memory * MIB - (size + MIB) // MIB * MIB
        append = f"{options.append} mem={self.memory}M initrd={start:#x},{size} quiet panic=-1 server={'yes' if server else 'no'}"
        self.said = b""
        self.serial, end = socket.socketpair()
        with end:
            self.machine = subprocess.Popen([
                *options.qemu, "-display", "none", "-monitor", "none", "-nodefaults", "-no-reboot", "-append", append,
                "-device", f"loader,file={initramfs},addr={start:#x},force-raw=on",
                # Without the server, too: a Pi Zero emulated without has stood still in the middle of the benchmark.
                "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:8080",
                "-device", f"{options.nic},netdev=net",
                "-chardev", f"socket,id=serial,fd={end.fileno()}", "-serial", "chardev:serial"],
                stdout=sys.stderr, pass_fds=[end.fileno()])
        self._read_until(rb"<ready>", BOOT_SECS)

    def _read_until(self, pattern: bytes, secs: float) -> re.Match:
        deadline = time.monotonic() + secs
        while not (found := re.search(pattern, self.said)):
            self.serial.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                more = self.serial.recv(65536)
            except TimeoutError:
                raise BoardError(f"the board did not get so far in {secs} s; it said:\n{self.log()}") from None
            self.said += more
            if self.show:
                print(re.sub(rb"\r|<ended \d+>\s*", b"", more).decode(errors="replace"), end="", flush=True)
            if not more or re.search(rb"Out of memory|Kernel panic", self.said):
                raise BoardError(f"the board has stopped or has no memory left; it said:\n{self.log()}")
        return found

    def log(self) -> str:
        return self.said.decode(errors="replace").replace("\r", "")[-3000:]

    def run(self, command: str, secs: float = 60) -> str:
        """Carries out a line of shell on the board."""
        self.said = b""
        self.serial.sendall(command.encode() + b"\n")
        ended = self._read_until(rb"<ended (\d+)>\r?\n", secs)
        said = self.said[:ended.start()].decode(errors="replace").replace("\r", "")
        if ended[1] != b"0":
            raise BoardError(f"{command!r} ended with {int(ended[1])}: {said}")
        return said

    def wait_for_answer(self) -> float:
        """Uptime at which ankipi first answered on the board itself, seconds."""
        self.run("until [ -s /run/answered ]; do usleep 50000; done", BOOT_SECS)
        # Boards that keep no time while they are off get it from the network some time after the start.
        self.run(f"date -s @{int(time.time())}")
        deadline = time.monotonic() + BOOT_SECS
        while not self._reachable():
            if time.monotonic() > deadline:
                raise BoardError("the server cannot be reached from outside")
        return float(self.run("cat /run/answered"))

    def _reachable(self) -> bool:
        """True if the server answers through the emulator's network, which accepts connections before the board does."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: board\r\nconnection: close\r\n\r\n")
                return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def memory_of_server(self) -> dict[str, int]:
        """What the kernel tells of ankipi's process, kB."""
        return kilobytes(self.run("cat /proc/$(cat /run/ankipi.pid)/status"))

    def available(self, when: str = "/proc/meminfo") -> int:
        """MemAvailable, kB."""
        return kilobytes(self.run(f"cat {when}"))["MemAvailable"]

    def cut_power(self) -> None:
        if self.machine:
            self.machine.kill()
            self.machine.wait()
            self.serial.close()
            self.machine = None


def kilobytes(table: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", table, re.MULTILINE)}


class Steps:
    """Counts the steps that passed. After a failed step the others are skipped."""

    passed = failed = 0

    @contextmanager
    def step(self, board: Board, name: str):
        started = time.monotonic()
        try:
            yield
        except (Exception, pytest.fail.Exception):
            traceback.print_exc()
            print(f"{board.options.name}: FAILED: {name}\n{board.log()}", file=sys.stderr)
            self.failed += 1
            raise StoryOver from None
        self.passed += 1
        print(f"{board.options.name}: ok: {name} ({time.monotonic() - started:.0f} s)", file=sys.stderr)


def tell_story(board: Board, steps: Steps, folder: Path) -> None:
    """Two clients, all kinds of syncs, a power cut. Prints the line about memory."""
    figures = SimpleNamespace()
    account = Account(board, "anna", "secret", folder)
    try:
        with steps.step(board, "ankipi starts by its init script and answers"):
            board.boot()
            figures.answered = board.wait_for_answer()
            figures.taken = board.memory * 1024 - board.available("/run/meminfo-before")
            figures.idle, figures.left_idle = board.memory_of_server(), board.available()
        with steps.step(board, "the root is read-only, an account can be made"):
            board.run("! touch /file 2>/dev/null")
            board.run("echo secret | su -s /bin/sh ankipi -c '/usr/bin/ankipi user add anna --base /var/lib/ankipi'")
        desk, phone = account.device("desk"), account.device("phone")
        with steps.step(board, "a first upload, downloaded by another device"):
            desk.add_notes(1000, "a note of some length " * 20)
            desk.upload()
            phone.download()
        with steps.step(board, "changes of both devices, many and few, and a fresh download"):
            desk.edit(desk.fronts()[0], "edited")
            desk.add_notes(1000, "from the desk")
            phone.add_note("from the phone", tags="a b::c")
            phone.review(20)
            account.settle(desk, phone)
        with steps.step(board, "media of both devices"):
            for n in range(30):
                put(desk, f"picture{n}.jpg", os.urandom(20_000))
            put(phone, "recording.mp3", os.urandom(1_000_000))
            settle_media(account, desk, phone)
        with steps.step(board, "syncs without changes, and memory is read"):
            for device in (desk, phone):
                device.sync()
            figures.after, figures.left_after = board.memory_of_server(), board.available()
        with steps.step(board, "everything is there after its power was cut"):
            desk.add_note("last words")
            desk.sync()
            put(desk, "last.jpg", os.urandom(50_000))
            sync_media(desk)
            board.cut_power()
            board.boot()
            board.wait_for_answer()
            fresh = account.device_in_sync("after-the-cut")
            assert_same(rows(fresh.col), rows(desk.col), NOT_SYNCED, "after the power cut / before")
            sync_media(fresh)
            assert held(fresh) == held(desk)
            desk.sync()  # with the key it had
        print(line_about(board, figures), flush=True)
    except StoryOver:
        pass
    finally:
        account.close()
        board.cut_power()


def line_about(board: Board, figures: SimpleNamespace) -> str:
    def megabytes(kib: int) -> str:
        return f"{kib / 1024:.1f}"

    return (f"{board.options.name}: {board.memory} MB, {megabytes(figures.taken)} of them taken before ankipi starts; it answered "
            f"{figures.answered:.1f} s after power-on; VmHWM {megabytes(figures.idle['VmHWM'])}, RssAnon "
            f"{megabytes(figures.idle['RssAnon'])} idle, {megabytes(figures.after['VmHWM'])} and {megabytes(figures.after['RssAnon'])} "
            f"after the syncs; MemAvailable {megabytes(figures.left_idle)} idle, {megabytes(figures.left_after)} after")


def find_least(board: Board) -> int:
    """The least memory with which kernel and busybox boot and still carry out commands, MB."""
    boots, fails = board.memory, SMALLEST
    while boots - fails > 1:
        board.memory = (boots + fails) // 2
        try:
            board.boot(server=False)
            board.run("cat /proc/meminfo")
            boots = board.memory
        except BoardError:
            fails = board.memory
        finally:
            board.cut_power()
        print(f"{board.options.name}: {board.memory} MB {'are enough' if boots == board.memory else 'are too few'} "
              "for kernel and busybox", file=sys.stderr)
    return boots


def run_benchmark(board: Board, steps: Steps, arguments: str) -> None:
    """The benchmark as people run it on a board of their own, with the service stopped."""
    try:
        with steps.step(board, "the benchmark"):
            board.boot(server=False)
            board.run(f"date -s @{int(time.time())}")
            board.show = True
            board.run(f"/usr/bin/ankipi-bench --board --data /var/lib/ankipi {arguments}", BENCH_SECS)
    except StoryOver:
        pass
    finally:
        board.cut_power()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--ram-start", type=lambda text: int(text, 0), required=True)
    parser.add_argument("--initramfs", required=True)
    parser.add_argument("--append", required=True)
    parser.add_argument("--nic", required=True)
    parser.add_argument("--tally", required=True, help="a line with the numbers of passed and failed steps is added to this file")
    parser.add_argument("--least", action="store_true")
    parser.add_argument("--bench", metavar="ARGS")
    parser.add_argument("qemu", nargs="+")
    options = parser.parse_args()
    steps = Steps()
    with tempfile.TemporaryDirectory(prefix="ankipi-boot-") as folder:
        board = Board(options)
        if options.least:
            least = find_least(board)
            print(f"{options.name}: kernel and busybox boot with {least} MB", flush=True)
            board.memory = least + HEADROOM
        if options.bench is not None:
            run_benchmark(board, steps, options.bench)
        else:
            tell_story(board, steps, Path(folder) / "clients")
    with open(options.tally, "a") as tally:
        print(steps.passed, steps.failed, file=tally)
    return 1 if steps.failed else 0


if __name__ == "__main__":
    sys.exit(main())
