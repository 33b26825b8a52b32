"""Accounts that are made, changed and taken away by `ankipi user` while the server runs, as the real client sees it."""

import os
import pty
import subprocess

import pytest
from anki.errors import SyncError, SyncErrorKind

from server import command

pytestmark = pytest.mark.ours


def ankipi(server, *args: str, password: str = "") -> str:
    env = {"SYNC_BASE": str(server.base), "PATH": os.environ["PATH"]}
    done = subprocess.run([*command(), *args], env=env, input=password, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def add(server, name: str, password: str) -> None:
    ankipi(server, "user", "add", name, "--rounds", "100000", password=password)


def kind(device) -> SyncErrorKind:
    with pytest.raises(SyncError) as err:
        device.try_sync()
    return err.value.kind


@pytest.fixture
def server(new_server):
    return new_server()  # without a single account


def test_a_user_that_was_just_added_logs_in_and_syncs(server, new_account):
    add(server, "anna", "Grüße, 日本")
    anna = new_account(server, "anna", "Grüße, 日本")
    desk, phone = anna.two_devices()
    desk.add_note("four")
    assert anna.settle(desk, phone).fronts() == ["four", "one", "three", "two"]
    listing = ankipi(server, "device", "list", "anna")
    assert listing.count("26.09.3") == 3, listing


def test_adding_somebody_else_disturbs_no_device(server, new_account):
    add(server, "anna", "one")
    desk, phone = new_account(server, "anna", "one").two_devices()
    add(server, "bob", "two")
    ankipi(server, "user", "remove", "bob")
    desk.add_note("four")
    desk.sync()
    phone.sync()
    assert "four" in phone.fronts()


def test_a_removed_user_is_logged_out_and_finds_everything_when_added_again(server, new_account):
    add(server, "anna", "one")
    anna = new_account(server, "anna", "one")
    desk, _ = anna.two_devices()
    ankipi(server, "user", "remove", "anna")
    assert kind(desk) is SyncErrorKind.AUTH
    add(server, "anna", "one")
    assert kind(desk) is SyncErrorKind.AUTH
    assert anna.device_in_sync("tablet").fronts() == ["one", "three", "two"]


def test_a_new_password_logs_out_all_devices_and_a_revoked_key_one(server, new_account):
    add(server, "anna", "one")
    desk, phone = new_account(server, "anna", "one").two_devices()
    first = ankipi(server, "device", "list", "anna").splitlines()[1].split()[1]
    ankipi(server, "device", "revoke", "anna", first)
    assert kind(desk) is SyncErrorKind.AUTH
    phone.sync()
    ankipi(server, "user", "passwd", "anna", "--rounds", "100000", password="two")
    assert kind(phone) is SyncErrorKind.AUTH
    phone.password = "two"
    phone.login()
    phone.sync()


def test_who_is_slowed_down_is_told_to_wait_and_not_that_the_password_is_wrong(server, new_account):
    add(server, "anna", "one")
    anna = new_account(server, "anna", "guess").device("desk")
    kinds = []
    for _ in range(5):
        with pytest.raises(SyncError) as err:
            anna.login()
        kinds.append(err.value.kind)
    assert kinds[:4] == [SyncErrorKind.AUTH] * 4
    assert kinds[4] is SyncErrorKind.OTHER


def test_a_password_typed_at_a_terminal_is_not_shown(server, new_account):
    ours, theirs = pty.openpty()
    env = {"SYNC_BASE": str(server.base), "PATH": os.environ["PATH"]}
    adding = [*command(), "user", "add", "anna", "--rounds", "100000"]
    # A session of its own, so that no terminal of the tester is asked.
    process = subprocess.Popen(adding, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = ""
    for prompt in ["Password: ", "The same again: "]:
        while prompt not in shown:
            shown += os.read(ours, 1000).decode()
        os.write(ours, b"hush hush\n")
    while True:
        try:
            shown += os.read(ours, 1000).decode()
        except OSError:  # the other end is closed: how Linux tells the end
            break
    assert process.wait() == 0, shown
    assert "can log in" in shown and "hush" not in shown
    assert new_account(server, "anna", "hush hush").device("desk").login()
