"""ankipi in the place of Anki's own server, and back: the same folder, the same accounts, and clients that notice nothing."""

import shutil

import pytest

from test_media import put, settle, sync_media


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
