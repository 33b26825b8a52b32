"""ankipi in the place of Anki's own server, and back: the same folder, the same accounts, and clients that notice nothing."""

import pytest


@pytest.mark.ours
def test_the_official_servers_folder_is_taken_over_and_given_back(new_server, new_account):
    server = new_server("anna:secret")
    account = new_account(server, "anna", "secret")
    server.go_on_as(official=True)
    desk, phone = account.two_devices()
    for official in (False, True, False):
        # The official server does not tidy up when it is stopped: the last sync is in its WAL.
        desk.add_note(f"before the server is {'official' if official else 'ankipi'}")
        desk.sync()
        server.go_on_as(official)
        phone.add_note(f"now it is {'official' if official else 'ankipi'}")
        phone.sync()
    account.settle(desk, phone)
