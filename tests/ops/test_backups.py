"""Backups: what uploads replaced, and how to go back to it."""

import pytest

from commands import done, refused
from device import FULL_SYNC


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
    assert head.split() == ["USER", "NUMBER", "LAST", "CHANGE", "NOTES", "CARDS", "SIZE"]
    assert backup.split()[:2] == ["anna", "1"] and backup.split()[4:6] == ["1", "1"], backup
    assert current.split()[:3] == ["anna", "in", "use"] and current.split()[5:7] == ["2", "2"], current
    assert done(server, "backup", "list") == done(server, "backup", "list", "anna")
    assert "nothing of a user" in refused(server, "backup", "list", "bob")


def test_a_restored_backup_reaches_every_device(replaced):
    server, account, desk, phone = replaced
    assert "stop it first" in refused(server, "restore", "anna", "1")
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
