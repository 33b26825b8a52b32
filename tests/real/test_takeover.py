"""ankipi in the place of Anki's own server, and back: the same folder, the same accounts, and clients that notice nothing."""

import shutil

import pytest
from anki.errors import SyncError

from device import NO_CHANGES
from test_media import held, put, settle, sync_media


@pytest.mark.ours
def test_the_official_servers_folder_is_taken_over_and_given_back(new_server, new_account):
    server = new_server("anna:secret")
    server.stop()
    shutil.rmtree(server.base)
    server.official = True
    server.start()
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices()
    for official in (False, True, False):
        name = "official" if official else "ankipi"
        # The official server does not tidy up when it is stopped: the last sync is in its WAL.
        desk.add_note(f"before the server is {name}")
        put(desk, f"before-{name}-{len(desk.fronts())}.jpg", name.encode() * 1000)
        desk.sync()
        sync_media(desk)
        server.go_on_as(official)
        phone.add_note(f"now it is {name}")
        put(phone, f"now-{name}-{len(phone.fronts())}.jpg", name.encode() * 2000)
        phone.sync()
        sync_media(phone)
    account.settle(desk, phone)
    settle(account, desk, phone)


@pytest.mark.ours
def test_from_ankiweb_as_docs_ways_in_tells(new_server, new_account):
    """AnkiWeb is played by Anki's own server: what the devices bring from there, its stamps and usns, is of the same kind."""
    ankiweb = new_server("anna:of-ankiweb")
    ankiweb.go_on_as(official=True)
    desk, phone = new_account(ankiweb, "anna", "of-ankiweb").two_devices()
    put(desk, "picture.jpg", b"x" * 5000)
    for device in (desk, phone, desk):
        device.sync()
        sync_media(device)
    ankiweb.stop()

    account = new_account(new_server("me:secret"), "me", "secret")
    for device in (desk, phone):
        device.use(account.server.url)
        device.user, device.password, device.auth = "me", "secret", None
    assert desk.try_sync() != NO_CHANGES
    desk.upload()
    # The device believes that its media are on the server already, until their counts are compared.
    with pytest.raises(SyncError, match="sync again"):
        sync_media(desk)
    sync_media(desk)
    assert phone.try_sync() != NO_CHANGES
    phone.download()
    sync_media(phone)
    assert held(phone) == held(desk) and "picture.jpg" in str(held(phone))
    phone.add_note("the first of its own server")
    account.devices += [desk, phone]
    account.settle(desk, phone)
    settle(account, desk, phone)
