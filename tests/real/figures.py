"""Memory, threads, descriptors and files that a server's process holds at a moment."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from server import Server

# The program that boards run is no larger. Of a debug build up to 11 MB are in memory.
STATIC_PROGRAM_KIB = 3300


@dataclass
class Figures:
    threads: int
    descriptors: int
    # With no more of the program's own pages than the static one has.
    peak_kib: int
    rss_kib: int
    # What the process has made itself: heap and stacks, without the program and what is mapped of files.
    anon_kib: int
    files: dict[str, int]

    @staticmethod
    def of(server: Server) -> "Figures":
        proc = Path(f"/proc/{server.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        ours = established(server.port)
        descriptors = [link for link in links(proc / "fd") if link not in ours]
        peak, rss, anon = (int(status[name].split()[0]) for name in ("VmHWM", "VmRSS", "RssAnon"))
        beyond = max(0, int(status["RssFile"].split()[0]) - STATIC_PROGRAM_KIB)
        return Figures(int(status["Threads"]), len(descriptors), peak - beyond, rss, anon, sizes(server.base))


def sizes(base: Path) -> dict[str, int]:
    found = {}
    for path in base.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # deleted just now
            if path.is_file():
                found[str(path.relative_to(base))] = path.stat().st_size
    return found


def links(folder: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed just now
            yield os.readlink(entry)


def established(port: int) -> set[str]:
    """The server's ends of whole connections. When all others are closed, these are what the devices keep for their next sync."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}


def until(look: Callable[[], Figures], good: Callable[[Figures], bool], patience_secs: float) -> Figures:
    deadline = time.monotonic() + patience_secs
    while not good(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.05)  # between two looks
    return seen
