"""`ankipi import`, killed at each of its operations on the disk: what is there then is the old state or the new one, and the next
run goes on to the new one."""

import os
import shutil
import sqlite3
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from commands import done, run
from server import REPO, command
from test_import import Old, empty, old  # noqa: F401  (fixtures)
from test_media import put, sync_media

# In a user's folder.
KNOWN = {"collection.anki2", "media", "media.db", "media.db-wal", "media.db-shm", "backups", "keys"}
# What a process leaves that is killed. The next start of the server deletes it.
TEMPORARY = ("spool-", "collection.anki2.restoring-")
KILL = 3  # of tests/durability/disk.c
MEDIA_FILES = 2
CHECK_EVERY = 10


class Disk:
    """tests/durability/disk.c below a data folder."""

    def __init__(self, at: Path, base: Path):
        self.library, self.control, self.base = at / "disk.so", at / "control", base
        source = REPO / "tests/durability/disk.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.library, source, "-ldl"], check=True)

    def run_until(self, server, countdown: int, *words: str) -> bool:
        """Runs a command and kills it at this operation. Returns whether that came before its end."""
        self.control.write_bytes(struct.pack("=4i", KILL, countdown, 0, 0))
        env = server.env | {"LD_PRELOAD": str(self.library), "DISK_BASE": str(self.base), "DISK_CONTROL": str(self.control)}
        ended = subprocess.run([*command(official=False), *words], env=env, capture_output=True, text=True, timeout=120)
        assert ended.returncode in (0, -9), ended
        return ended.returncode == -9


def rows_of(collection: Path) -> list:
    db = sqlite3.connect(collection)
    rows = [db.execute(f"SELECT * FROM {table} ORDER BY id").fetchall() for table in ("notes", "cards", "revlog")]
    db.close()
    return rows


def contents(folder: Path) -> tuple:
    """The rows of a collection, and the media."""
    rows = rows_of(folder / "collection.anki2")
    media = folder / "media"
    return rows, {path.name: path.read_bytes() for path in media.iterdir()} if media.is_dir() else {}


@pytest.fixture
def in_memory():
    """A folder where syncing costs no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)


def put_back(base: Path, before: Path) -> None:
    shutil.rmtree(base, ignore_errors=True)
    if before.exists():
        shutil.copytree(before, base)


def test_an_import_of_ankisyncd_killed_anywhere(old, empty, in_memory, tmp_path):  # noqa: F811
    source = old[0].root
    for path in source.glob("collections/*/collection.media/*"):
        if int(path.stem.split()[1]) >= MEDIA_FILES:
            path.unlink()
    names = ("anna",)
    shutil.rmtree(source / "collections/bob")
    empty.base = in_memory / "data"
    empty.env["SYNC_BASE"] = str(empty.base)
    done(empty, "import", str(source))
    whole = {name: contents(empty.base / name) for name in names}
    users = (empty.base / "users").read_text()
    assert all(len(media) == MEDIA_FILES for _, media in whole.values())
    disk, kills, with_anna = Disk(tmp_path, empty.base), 0, 0
    while True:
        shutil.rmtree(empty.base)
        if not disk.run_until(empty, kills + 1, "import", str(source)):
            break
        kills += 1
        there = [name for name in names if (empty.base / name).exists()]
        if "anna" in there:
            with_anna += 1
            assert (empty.base / "users").read_text() == users, f"kill {kills}: a folder without its account"
        for name in there:
            # A copy: looking at it must not mend it.
            shutil.copytree(empty.base / name, tmp_path / "look")
            assert contents(tmp_path / "look") == whole[name], f"kill {kills}: {name} is half there"
            shutil.rmtree(tmp_path / "look")
        again = run(empty, "import", str(source))
        for name in names:
            is_refused = f"{empty.base / name} exists already" in again.stderr
            assert is_refused == (name in there), f"kill {kills}: {again}"
            assert contents(empty.base / name) == whole[name], f"kill {kills}"
        assert (empty.base / "users").read_text() == users, f"kill {kills}: the old password is lost"
        if kills % CHECK_EVERY == 0:
            done(empty, "check", "--deep")
        left = [path.name for path in empty.base.iterdir() if path.name not in (*names, "users") and not path.name.startswith(".")]
        assert not left, f"kill {kills}: {left}"
    print(f"\n{kills} kills, {with_anna} of them with the first user there")
    assert kills > 30 and 0 < with_anna < kills


@pytest.mark.parametrize("legacy", [False, True], ids=["new", "legacy"])
def test_an_import_of_a_package_killed_anywhere(new_server, new_account, in_memory, tmp_path, legacy):
    server = new_server("anna:secret", "old:secret")
    devices = {name: new_account(server, name, "secret").device("desk") for name in ("anna", "old")}
    for name, device in devices.items():
        device.add_note(name)
        for number in range(MEDIA_FILES):
            put(device, f"{name} {number}.jpg", f"{name} {number}".encode())
    devices["anna"].upload()
    devices["anna"].sync()
    sync_media(devices["anna"])
    package = tmp_path / "all.colpkg"
    devices["old"].col.export_collection_package(out_path=str(package), include_media=True, legacy=legacy)
    server.stop()
    shutil.copytree(server.base, before := tmp_path / "before")
    base = server.base = in_memory / "data"
    server.env["SYNC_BASE"] = str(base)
    put_back(base, before)
    rows_before, media_before = contents(base / "anna")
    done(server, "import", str(package), "anna")
    rows_after, media_after = contents(base / "anna")
    assert rows_before != rows_after and len(media_after) == 2 * MEDIA_FILES == 2 * len(media_before)
    disk, kills, replaced, seen = Disk(tmp_path, base), 0, 0, set()
    while True:
        put_back(base, before)
        if not disk.run_until(server, kills + 1, "import", str(package), "anna"):
            break
        kills += 1
        shutil.copytree(base / "anna", tmp_path / "look")
        path = tmp_path / "look/collection.anki2"
        if path.exists():
            rows, media = contents(tmp_path / "look")
            assert rows in (rows_before, rows_after), f"kill {kills}: half a collection"
            replaced += rows == rows_after
            assert media.items() >= media_before.items(), f"kill {kills}: {sorted(media)}"
        shutil.rmtree(tmp_path / "look")
        done(server, "import", str(package), "anna")
        assert contents(base / "anna") == (rows_after, media_after), f"kill {kills}"
        if kills % CHECK_EVERY == 0:
            done(server, "check", "--deep")
        kept = [path for path in (base / "anna/backups").glob("*.anki2") if rows_of(path) == rows_before]
        assert kept, f"kill {kills}: what was replaced is not kept"
        left = {path.name for path in (base / "anna").iterdir()} - KNOWN
        assert all(name.startswith(TEMPORARY) for name in left), f"kill {kills}: {left}"
        seen |= left
    print(f"\n{kills} kills, {replaced} of them behind the replacement")
    assert kills > 30 and 0 < replaced < kills and seen
    for name in seen:
        (base / "anna" / name).write_bytes(b"left over")
    server.start()
    assert {path.name for path in (base / "anna").iterdir()} <= KNOWN
