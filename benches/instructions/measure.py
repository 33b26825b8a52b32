#!/usr/bin/env python3
"""Counts the instructions of everyday syncs of the real client, with a server for another processor. Times of an emulator are not
those of a board; its instructions are, but for the kernel's, which are not counted.

    tests/.venv/bin/python benches/instructions/measure.py arm target/cross/arm-unknown-linux-musleabihf/ankipi
    tests/.venv/bin/python benches/instructions/measure.py x86_64 tests/.venv/bin/python -m anki.syncserver

The first argument is the end of the emulator's name, the others are the server. NOTES is the size of the collection. Needs cc and
Debian's qemu-user (QEMU names another path of the emulator).
"""

import os
import shlex
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests/real"))

SYNCS = 20


def main() -> None:
    processor, program = sys.argv[1], shlex.join(sys.argv[2:])
    emulator = os.environ.get("QEMU", f"qemu-{processor}")
    with tempfile.TemporaryDirectory() as folder:
        plugin, count = Path(folder, "count.so"), Path(folder, "count")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", plugin, HERE / "count.c"], check=True)
        start = Path(folder, "start")
        start.write_text(f'#!/bin/sh\nexec {emulator} -plugin {plugin},out={count} {program} "$@"\n')
        start.chmod(0o755)
        os.environ["ANKIPI_BIN"] = str(start)
        measure(Path(folder), count)


def measure(folder: Path, count: Path) -> None:
    # Reads ANKIPI_BIN.
    from account import Account
    from server import Server
    from test_media import put, sync_media

    (folder / "base").mkdir()
    server = Server(folder / "base", ["anna:secret"], SYNC_BACKUP_DAYS="0")
    account = Account(server, "anna", "secret", folder)
    desk = account.device("desk")
    desk.add_notes(int(os.environ.get("NOTES", "5000")))
    desk.upload()
    phone = account.device_in_sync("phone")

    def millions(what: str, syncs: int, work) -> None:
        before = struct.unpack("Q", count.read_bytes())[0]
        for _ in range(syncs):
            work()
        after = struct.unpack("Q", count.read_bytes())[0]
        print(f"{what:32} {(after - before) / syncs / 1e6:8.2f} million instructions", flush=True)

    desk.sync()
    phone.sync()
    try:
        millions("a login", 3, desk.login)
        millions("a sync without changes", SYNCS, phone.sync)
        millions("a review", SYNCS, lambda: (desk.review(), desk.sync()))
        millions("10 notes", SYNCS, lambda: ([desk.add_note(f"new {n}") for n in range(10)], desk.sync()))
        millions("a picture", SYNCS, lambda: (put(desk, f"{os.urandom(4).hex()}.jpg", os.urandom(40_000)), sync_media(desk)))
    finally:
        server.process.kill()
        server.process.wait()


main()
