"""A data folder that is put back from a copy knows less than the devices: all of them end up equal, and nothing newer is lost."""

import shutil

import pytest
from anki.errors import NetworkError, SyncError

from device import FULL_SYNC, NO_CHANGES
from server import REFERENCE
from shelf import PRESSES, Copy, press
from test_media import delete, folder, held, put, replace, settle, sync_media

pytestmark = pytest.mark.ours


@pytest.fixture(params=[False, True], ids=["ankipi", "official"])
def account(request, new_server, new_account):
    """On a folder of ankipi's own, and on one of Anki's server that ankipi takes over together with the copy."""
    server = new_server("anna:secret")
    if request.param:
        server.stop()
        shutil.rmtree(server.base)
        server.official = True
        server.start()
    return new_account(server, "anna", "secret")


def put_back(copy: Copy) -> None:
    copy.put_back(official=REFERENCE)


def wants(device) -> int:
    """What a sync asks for; the first one after the folder went back may fail."""
    try:
        return device.try_sync()
    except (SyncError, NetworkError):
        return device.try_sync()


def work(desk, phone) -> None:
    for n in range(3):
        desk.add_note(f"of the desk {n}")
        desk.sync()
        phone.review()
        phone.edit("one" if n == 0 else f"one {n}", f"one {n + 1}")
        phone.sync()
    desk.sync()


@pytest.mark.parametrize("first", ["desk", "phone"])
@pytest.mark.parametrize("keeps", ["upload", "download"])
def test_a_collection(account, first, keeps):
    desk, phone = account.two_devices()
    copy = Copy(account.server)
    work(desk, phone)
    put_back(copy)
    devices = [desk, phone] if first == "desk" else [phone, desk]
    fronts = devices[0].fronts()
    assert wants(devices[0]) == FULL_SYNC
    assert "minUsn" in account.server.log() or "older than" in account.server.log(), account.server.log()
    getattr(devices[0], keeps)()
    assert wants(devices[1]) == FULL_SYNC
    devices[1].download()
    if keeps == "upload":
        assert devices[1].fronts() == fronts
    desk.add_note("afterwards")
    account.settle(desk, phone)


def test_a_device_that_only_looks(account):
    """The device has nothing to send, and must not take the old state for no change."""
    desk, phone = account.two_devices()
    copy = Copy(account.server)
    work(desk, phone)
    put_back(copy)
    assert wants(phone) == FULL_SYNC
    phone.upload()
    assert wants(desk) in (FULL_SYNC, NO_CHANGES)
    desk.download()
    account.settle(desk, phone)


def test_the_notice_outlasts_a_restart(account):
    desk, phone = account.two_devices()
    copy = Copy(account.server)
    work(desk, phone)
    put_back(copy)
    with pytest.raises((SyncError, NetworkError)):
        desk.try_sync()
    account.server.power_cut()
    assert desk.try_sync() == FULL_SYNC
    assert phone.try_sync() == FULL_SYNC


def test_media(account):
    desk, phone = account.device("desk"), account.device("phone")
    for n in range(5):
        put(desk, f"{n}.jpg", b"first %d" % n)
    settle(account, desk, phone)
    copy = Copy(account.server)
    put(desk, "later.jpg", b"later")
    replace(phone, "0.jpg", b"better")
    delete(phone, "1.jpg")
    for device in (desk, phone) * 2:
        sync_media(device)
    newest = held(desk)
    assert newest == held(phone)
    put_back(copy)
    for _ in range(PRESSES):
        press(phone)
        press(desk)
    assert held(settle(account, desk, phone)) == newest
    assert (folder(desk) / "0.jpg").read_bytes() == b"better"
    assert "older than" in account.server.log(), account.server.log()


def test_media_with_as_many_files_as_before(account):
    """The counts of both sides are equal, what is in the files is not."""
    desk, phone = account.device("desk"), account.device("phone")
    put(desk, "a.jpg", b"first")
    settle(account, desk, phone)
    copy = Copy(account.server)
    replace(desk, "a.jpg", b"better")
    sync_media(desk)
    sync_media(phone)
    put_back(copy)
    for _ in range(PRESSES):
        press(phone)
        press(desk)
    settle(account, desk, phone)
    assert (folder(desk) / "a.jpg").read_bytes() == b"better"
