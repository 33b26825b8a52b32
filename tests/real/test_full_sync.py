"""Whole collections, up and down."""

from device import FULL_DOWNLOAD, FULL_SYNC, FULL_UPLOAD, NO_CHANGES


def test_a_fresh_client_and_a_fresh_account_have_nothing_to_do(account):
    desk = account.device("desk")
    assert desk.try_sync() == NO_CHANGES
    assert desk.try_sync() == NO_CHANGES


def test_the_first_collection_goes_up_and_down_again(account):
    desk, phone = account.device("desk"), account.device("phone")
    desk.add_note("one", "back", deck="Languages::日本語", tags="a b::c")
    assert desk.try_sync() == FULL_UPLOAD
    desk.upload()
    assert desk.try_sync() == NO_CHANGES
    assert phone.try_sync() == FULL_DOWNLOAD
    phone.download()
    assert phone.try_sync() == NO_CHANGES
    assert account.settle(desk, phone).fronts() == ["one"]


def test_an_empty_collection_can_be_forced_up(account):
    desk = account.device("desk")
    desk.upload()
    assert desk.try_sync() == NO_CHANGES
    account.settle(desk, account.device_in_sync("phone"))


def test_a_new_account_can_be_downloaded(account):
    desk = account.device("desk")
    desk.add_note("lost by choice")
    desk.download()
    assert desk.fronts() == []
    desk.add_note("one")
    desk.sync()
    assert account.settle(desk).fronts() == ["one"]


def test_two_collections_that_never_met_ask_which_one_to_keep(account):
    desk, phone = account.two_devices()
    laptop = account.device("laptop")
    laptop.add_note("from the laptop")
    assert laptop.try_sync() == FULL_SYNC
    laptop.upload()
    assert laptop.try_sync() == NO_CHANGES
    for device in (desk, phone):
        assert device.try_sync() == FULL_SYNC
        device.download()
    assert account.settle(laptop, desk, phone).fronts() == ["from the laptop"]


def test_a_forced_upload_replaces_the_account(account):
    desk, phone = account.two_devices()
    phone.add_note("only here")
    phone.sync()
    desk.col.mod_schema(check=False)
    assert desk.try_sync() == FULL_SYNC
    desk.upload()
    assert phone.try_sync() == FULL_SYNC
    phone.download()
    assert account.settle(desk, phone).fronts() == ["one", "three", "two"]


def test_a_forced_download_replaces_the_device(account):
    desk, phone = account.two_devices()
    phone.add_note("four")
    phone.sync()
    desk.add_note("never seen again")
    desk.col.mod_schema(check=False)
    assert desk.try_sync() == FULL_SYNC
    desk.download()
    assert account.settle(desk, phone).fronts() == ["four", "one", "three", "two"]


def test_a_full_sync_can_be_repeated(account):
    desk, phone = account.two_devices()
    for _ in range(3):
        desk.upload()
        assert desk.try_sync() == NO_CHANGES
        phone.download()
        assert phone.try_sync() == NO_CHANGES
    account.settle(desk, phone)


def test_an_emptied_collection_asks_for_a_download(account):
    desk, phone = account.two_devices()
    phone.col.remove_notes(phone.col.find_notes(""))
    phone.col.mod_schema(check=False)
    assert phone.try_sync() == FULL_DOWNLOAD
    phone.download()
    account.settle(desk, phone)


def test_an_upload_leaves_no_unsynced_row_behind(account):
    """A row that says "changed since the last sync" in the server's file would fail every later sanity check."""
    desk, phone = account.two_devices()
    desk.add_note("four", tags="new")
    desk.review(2)
    desk.col.decks.id("empty")
    desk.upload()
    phone.download()
    for table in ("notes", "cards", "revlog", "decks", "tags", "notetypes", "deck_config"):
        assert phone.col.db.scalar(f"select count() from {table} where usn = -1") == 0, table
    account.settle(desk, phone)
