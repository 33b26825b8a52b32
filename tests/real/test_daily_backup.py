"""The daily copy of a collection: what was there before the first sync of the day, for a mistake that was synced everywhere."""

import datetime
import os
import re
import sqlite3
import subprocess
import time

import pytest

from device import FULL_SYNC
from programs import program
from server import Server
from wire import request

pytestmark = pytest.mark.ours


def copies(server, user="anna"):
    """The daily copies, oldest first, once those under way are complete."""
    folder = server.base / user / "backups"
    deadline = time.monotonic() + 20
    while list(folder.glob("*.new")):
        assert time.monotonic() < deadline, "a copy is never finished"
        time.sleep(0.01)
    return sorted(folder.glob("day-*"))


def a_day_passes(server):
    """The server starts anew, and its copies are a day older."""
    server.stop()
    for copy in copies(server):
        stem, day = re.fullmatch(r"(day-[0-9]{5})-(.*)\.anki2", copy.name).groups()
        older = datetime.date.fromisoformat(day) - datetime.timedelta(days=1)
        copy.rename(copy.with_name(f"{stem}-{older}.anki2"))
    server.start()


def written_bytes(server):
    with open(f"/proc/{server.process.pid}/io") as io:
        return int(re.search(r"write_bytes: (.*)", io.read()).group(1))


def test_a_deck_that_was_deleted_by_mistake_and_synced_comes_back(new_server, new_account, ankipi):
    server = new_server("anna:secret")
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices("keep me")
    deck = desk.add_deck("Precious")
    desk.add_note("precious", deck="Precious")
    desk.sync()
    first = copies(server)
    assert len(first) == 1
    a_day_passes(server)
    desk.col.decks.remove([deck])
    desk.sync()
    phone.sync()
    assert phone.fronts() == ["keep me"]
    assert len(copies(server)) == 2, server.log()
    listed = [line for line in ankipi(server, "backup", "list", "anna").splitlines() if "first sync of the day" in line]
    assert [line.split()[4] for line in listed] == ["1", "2"], listed
    ankipi(server, "restore", "anna", listed[-1].split()[1])
    for device in (desk, phone):
        assert device.try_sync() == FULL_SYNC
        device.download()
        assert device.fronts() == ["keep me", "precious"]
    account.settle(desk, phone)


def test_a_day_without_changes_writes_nothing(new_server, new_account):
    server = new_server("anna:secret")
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices()
    desk.add_note("once")
    account.settle(desk, phone)
    assert len(copies(server)) == 1
    a_day_passes(server)
    before = written_bytes(server)
    for _ in range(3):
        phone.sync()  # the last that has synced: nothing is new for it
    assert written_bytes(server) == before
    # Two devices in turn give each other a new stamp each time. The note is newer than the copy, so there is one more; then none.
    for _ in range(3):
        desk.sync()
        phone.sync()
        assert len(copies(server)) == 2
        a_day_passes(server)
    # A sync that is given up is one, too, but changes nothing.
    request(account, "start", {"minUsn": 0, "lnewer": False, "graves": None}, desk.auth.hkey)
    request(account, "abort", {}, desk.auth.hkey)
    assert len(copies(server)) == 2
    a_day_passes(server)
    # A change makes one copy the next day, with what is there before the first sync.
    for front in ("two", "three"):
        desk.add_note(front)
        desk.sync()
        phone.sync()
    assert len(copies(server)) == 2
    a_day_passes(server)
    for front in ("four", "five"):
        desk.add_note(front)
        desk.sync()
        phone.sync()
    assert len(copies(server)) == 3


def test_no_room_and_switched_off_mean_no_copy_and_no_trouble(new_server, new_account):
    for settings in ({"SYNC_BACKUP_DAYS": "0"}, {"SYNC_MIN_FREE_MEGS": "99999999"}):
        server = new_server("anna:secret", **settings)
        account = new_account(server, "anna", "secret")
        desk = account.device("desk")
        # An upload would be refused, too: the folder is put there.
        desk.add_note("one")
        if "SYNC_MIN_FREE_MEGS" not in settings:
            desk.upload()
        else:
            desk.login()
            desk.download()
            desk.add_note("one")
        desk.sync()
        desk.add_note("two")
        desk.sync()
        assert copies(server) == []
        assert ("SYNC_BACKUP_DAYS=0" in server.log()) == ("SYNC_MIN_FREE_MEGS" in settings), server.log()


def test_a_copy_of_a_large_collection_is_whole_while_devices_sync(new_server, new_account, tmp_path):
    """What was committed when the copy began is in it, and nothing of the syncs meanwhile."""
    server = new_server("anna:secret")
    account = new_account(server, "anna", "secret")
    desk = account.device("desk")
    desk.add_notes(20_000, "x" * 300)
    desk.upload()
    phone = account.device_in_sync("phone")
    for number in range(5):
        desk.add_note(f"meanwhile {number}")
        desk.sync()
        phone.sync()
    (copy,) = copies(server)
    with sqlite3.connect(f"file:{copy}?immutable=1", uri=True) as db:
        db.create_collation("unicase", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
        assert db.execute("select count() from notes").fetchone() == (20_000,)
        assert db.execute("pragma quick_check").fetchone() == ("ok",)
    assert copy.stat().st_mode & 0o777 == 0o600
    account.settle(desk, phone)
    assert not (server.base / "anna" / "collection.anki2-wal").exists()


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_disk_that_shares_blocks_copies_nothing(tmp_path, new_account, kind):
    if os.getuid() != 0:
        pytest.skip("only root can mount")
    image, mount = tmp_path / "image", tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    mount.mkdir()
    make = program(f"mkfs.{kind}", {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}[kind])
    subprocess.run([make, "-q", "-f", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no {kind} here: {mounted.stderr}")
    try:
        server = Server(mount / "base", ["anna:secret"])
        account = new_account(server, "anna", "secret")
        desk = account.device("desk")
        desk.add_notes(2000, "x" * 300)
        desk.upload()
        for front in ("one", "two"):
            desk.add_note(front)
            desk.sync()
        (copy,) = copies(server)
        assert "first sync of the day as backup 1, 0 bytes copied" in server.log(), server.log()
        with sqlite3.connect(f"file:{copy}?immutable=1", uri=True) as db:
            assert db.execute("select count() from notes").fetchone() == (2000,)
        server.stop()
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def test_a_copy_that_was_cut_by_a_power_cut_is_swept(new_server, new_account):
    server = new_server("anna:secret")
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices()
    server.stop()
    (server.base / "anna/backups").mkdir(exist_ok=True)
    (server.base / "anna/backups/day-2026-11-28.new").write_text("half")
    server.start()
    assert copies(server) == []
    desk.add_note("more")
    desk.sync()
    assert len(copies(server)) == 1
    assert os.listdir(server.base / "anna/backups") == [copies(server)[0].name]
