"""Backups: what uploads replaced, and how to go back to it."""

import time

import pytest

from commands import done, refused
from device import FULL_SYNC
from wire import request


@pytest.fixture
def replaced(new_server, new_account):
    """An account that was uploaded with one note, then again with the note `second`."""
    server = new_server("anna:secret")
    account = new_account(server, "anna", "secret")
    desk = account.device("desk")
    desk.add_note("first")
    desk.upload()
    phone = account.device_in_sync("phone")
    other = account.device("other")
    other.add_note("second")
    other.add_note("third")
    other.upload()
    return server, account, desk, phone


def test_backups_are_listed_with_what_is_in_them(replaced):
    server = replaced[0]
    head, backup, current = done(server, "backup", "list", "anna").splitlines()
    assert head.split() == ["USER", "NUMBER", "LAST", "CHANGE", "NOTES", "CARDS", "SIZE", "MADE"]
    assert backup.split()[:2] == ["anna", "1"] and backup.split()[4:6] == ["1", "1"], backup
    assert backup.endswith("an upload replaced it"), backup
    assert current.split()[:3] == ["anna", "in", "use"] and current.split()[5:7] == ["2", "2"], current
    assert done(server, "backup", "list") == done(server, "backup", "list", "anna")
    assert "nothing of a user" in refused(server, "backup", "list", "bob")


def test_a_restored_backup_reaches_every_device(replaced):
    server, account, desk, phone = replaced
    server.stop()
    assert "has no backup 7" in refused(server, "restore", "anna", "7")
    refused(server, "restore", "anna", "newest", status=2)
    assert "Restored backup 1" in done(server, "restore", "anna", "1")
    server.start()
    other = account.devices[2]
    for device in (desk, phone, other):
        # The desk and the phone had been in sync with the very collection that is back.
        assert device.try_sync() == FULL_SYNC, device.name
        device.download()
        assert device.fronts() == ["first"]
    assert account.settle(desk, phone, other).fronts() == ["first"]
    # What was replaced can be had back, too.
    backups = done(server, "backup", "list", "anna").splitlines()[1:-1]
    assert [line.split()[1] for line in backups] == ["1", "2"] and backups[1].split()[4] == "2", backups
    server.stop()
    done(server, "restore", "anna", "2")
    server.start()
    assert phone.try_sync() == FULL_SYNC
    phone.download()
    assert phone.fronts() == ["second", "third"]


def test_a_backup_that_is_damaged_is_refused_and_nothing_is_lost(replaced):
    server, account, desk, phone = replaced
    server.stop()
    backup = server.base / "anna/backups/collection-00001.anki2"
    backup.write_bytes(backup.read_bytes()[:20_000])
    before = {path: path.read_bytes() for path in server.base.rglob("*") if path.is_file() and path.name != ".ankipi.lock"}
    refused(server, "restore", "anna", "1")
    after = {path: path.read_bytes() for path in server.base.rglob("*") if path.is_file() and path.name != ".ankipi.lock"}
    assert after == before
    server.start()
    account.devices[2].sync()


def test_a_collection_beyond_reading_can_be_replaced_by_a_backup(replaced):
    server, account, desk, phone = replaced
    server.stop()
    (server.base / "anna/collection.anki2").write_bytes(b"garbage" * 1000)
    done(server, "restore", "anna", "1")
    server.start()
    assert phone.try_sync() == FULL_SYNC
    phone.download()
    assert phone.fronts() == ["first"]


def test_a_backup_is_restored_while_the_server_runs_and_a_device_syncs(replaced):
    server, account, desk, phone = replaced
    other = account.devices[2]
    other.add_note("fourth")
    other.sync()
    # A sync is in the middle of it when the owner restores.
    device = Raw(account)
    assert device.request("start", {"minUsn": 0, "lnewer": False, "graves": None}).status == 200
    assert "the server takes it" in done(server, "restore", "anna", "1")
    assert "restored one is taken" in done(server, "backup", "list", "anna")
    assert device.request("chunk", {}).status == 409
    for device in (desk, phone, other):
        assert device.try_sync() == FULL_SYNC, device.name
        device.download()
        assert device.fronts() == ["first"]
    assert account.settle(desk, phone, other).fronts() == ["first"]
    backups = done(server, "backup", "list", "anna").splitlines()
    assert "a restore replaced it" in backups[-2] and backups[-2].split()[4:6] == ["3", "3"], backups
    done(server, "check", "--deep")


def test_what_was_restored_just_before_a_power_cut_is_there_after_it(replaced):
    server, account, desk, phone = replaced
    done(server, "restore", "anna", "1")
    server.power_cut()
    assert phone.try_sync() == FULL_SYNC
    phone.download()
    assert phone.fronts() == ["first"]


def test_backups_are_made_beside_a_running_server(replaced, tmp_path, new_server):
    server, account, desk, phone = replaced
    for _ in range(3):
        assert "anna: backup" in done(server, "backup", "make", "--keep", "2")
    lines = [line for line in done(server, "backup", "list", "anna").splitlines() if "ankipi backup make" in line]
    assert [line.split()[1] for line in lines] == ["3", "4"], lines
    assert "a number above 0" in refused(server, "backup", "make", "--keep", "0", status=2)
    refused(server, "backup", "make", "--to", str(tmp_path / "missing"))

    to = tmp_path / "stick"
    to.mkdir()
    (to / "anna-20010101T000000Z.colpkg").write_text("the oldest of ours")
    (to / "annabel-20010101T000000Z.colpkg").write_text("of somebody else")
    (to / "anna-notes.colpkg").write_text("the owner's own")
    for number in range(3):
        done(server, "backup", "make", "--to", str(to), "--keep", "2", "anna")
        time.sleep(1.1)  # the names have seconds
    names = sorted(path.name for path in to.iterdir())
    ours = [name for name in names if name.startswith("anna-2")]
    assert len(ours) == 2 and "anna-20010101T000000Z.colpkg" not in ours
    assert len(names) == 4


class Raw:
    """Requests of a device of the account that a real client would not make on its own."""

    def __init__(self, account):
        self.account, self.key = account, account.devices[0].auth.hkey

    def request(self, method, payload):
        return request(self.account, method, payload, self.key)


def test_a_backup_of_nothing_or_to_nowhere_says_so(new_server, tmp_path):
    server = new_server("anna:secret")
    assert "no collection" in done(server, "backup", "make")
    missing = tmp_path / "stick"
    said = refused(server, "backup", "make", "--to", str(missing))
    assert f"there is no folder {missing}" in said and "mount its disk" in said and not missing.exists(), said


@pytest.mark.parametrize("later", ["restore", "import"])
def test_the_last_restore_or_import_counts_also_if_the_server_had_not_taken_the_one_before(replaced, tmp_path, later):
    server, account, desk, phone = replaced
    package = tmp_path / "anna.colpkg"
    done(server, "export", "anna", str(package))
    done(server, "backup", "make")
    made = next(line.split()[1] for line in done(server, "backup", "list").splitlines() if "ankipi backup make" in line)
    assert "the server takes it" in done(server, "restore", "anna", "1")
    server.stop()
    done(server, *(["restore", "anna", made] if later == "restore" else ["import", str(package), "anna"]))
    assert "a restored one is taken" not in done(server, "backup", "list")
    server.start()
    assert phone.try_sync() == FULL_SYNC
    phone.download()
    assert phone.fronts() == ["second", "third"]
