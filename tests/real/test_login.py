"""Names, passwords and host keys."""

import hashlib

import pytest
from anki.errors import SyncError, SyncErrorKind

from device import FULL_UPLOAD, NO_CHANGES
from server import phc


@pytest.fixture
def server(new_server):
    # Failed logins may slow down later ones of the same address, so they get a server of their own.
    return new_server("anna:secret", "bob:geheim", "colons:a:b::c", "ünal:Grüße, 日本 ok ")


def refusal(device) -> SyncErrorKind:
    with pytest.raises(SyncError) as err:
        device.try_sync()
    return err.value.kind


def test_the_right_password_logs_in(server, new_account):
    desk = new_account(server, "anna", "secret").device("desk")
    assert desk.login()
    assert desk.try_sync() == NO_CHANGES


@pytest.mark.parametrize("user, password", [("anna", "Secret"), ("anna", ""), ("anna", "geheim"), ("nobody", "secret"), ("", "")])
def test_a_wrong_name_or_password_does_not(server, new_account, user, password):
    desk = new_account(server, user, password).device("desk")
    with pytest.raises(SyncError) as err:
        desk.login()
    assert err.value.kind is SyncErrorKind.AUTH


@pytest.mark.parametrize("user, password", [("colons", "a:b::c"), ("ünal", "Grüße, 日本 ok ")])
def test_passwords_may_hold_colons_spaces_and_any_script(server, new_account, user, password):
    account = new_account(server, user, password)
    desk = account.device("desk")
    desk.add_note("one")
    assert desk.try_sync() == FULL_UPLOAD
    desk.upload()
    account.settle(desk)


def test_a_key_that_the_official_server_gave_keeps_working(server, new_account):
    desk, phone = new_account(server, "anna", "secret").two_devices()
    phone.use_key(hashlib.sha1(b"anna:secret").hexdigest())
    phone.add_note("four")
    phone.sync()
    desk.sync()
    assert desk.fronts() == ["four", "one", "three", "two"]


def test_a_key_that_nobody_gave_logs_the_device_out(server, new_account):
    desk = new_account(server, "anna", "secret").device("desk")
    for key in ["", "x", "0" * 40, hashlib.sha1(b"anna:Secret").hexdigest()]:
        desk.use_key(key)
        assert refusal(desk) is SyncErrorKind.AUTH, key


def test_accounts_do_not_see_each_other(server, new_account):
    anna, bob = new_account(server, "anna", "secret"), new_account(server, "bob", "geheim")
    desk, other = anna.device("desk"), bob.device("other")
    desk.add_note("anna's")
    other.add_note("bob's")
    desk.upload()
    other.upload()
    assert anna.settle(desk).fronts() == ["anna's"]
    assert bob.settle(other).fronts() == ["bob's"]


def test_keys_survive_a_restart(server, new_account):
    desk, phone = new_account(server, "anna", "secret").two_devices()
    server.power_cut()
    desk.add_note("four")
    desk.sync()
    phone.sync()
    assert phone.fronts() == ["four", "one", "three", "two"]


def test_hashed_passwords_log_in(new_server, new_account):
    server = new_server("anna:" + phc("secret"), "bob:" + phc("a:b"), PASSWORDS_HASHED="1")
    for user, password in [("anna", "secret"), ("bob", "a:b")]:
        account = new_account(server, user, password)
        account.settle(*account.two_devices())


def test_a_hash_is_not_a_password(new_server, new_account):
    hashed = phc("secret")
    server = new_server("anna:" + hashed, PASSWORDS_HASHED="1")
    with pytest.raises(SyncError):
        new_account(server, "anna", hashed).device("desk").login()


@pytest.mark.ours
def test_a_hash_does_not_make_a_key(new_server, new_account):
    """The official server takes the hash of the stored line as the key, so that whoever reads the line is in."""
    hashed = phc("secret")
    server = new_server("anna:" + hashed, PASSWORDS_HASHED="1")
    desk = new_account(server, "anna").device("desk")
    desk.use_key(hashlib.sha1(f"anna:{hashed}".encode()).hexdigest())
    assert refusal(desk) is SyncErrorKind.AUTH
