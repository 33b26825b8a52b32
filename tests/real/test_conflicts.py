"""The same thing changed on two devices between syncs: the newer change wins, wherever it is synced from."""

import pytest


@pytest.mark.parametrize("first_to_sync", ["desk", "phone"])
def test_the_newer_edit_of_a_note_wins(account, first_to_sync):
    desk, phone = account.two_devices()
    phone.age("notes", phone.edit("one", "older").id, 100)
    desk.age("notes", desk.edit("one", "newer").id, 50)
    devices = (desk, phone) if first_to_sync == "desk" else (phone, desk)
    assert account.settle(*devices).fronts() == ["newer", "three", "two"]


@pytest.mark.parametrize("first_to_sync", ["desk", "phone"])
def test_the_newer_state_of_a_card_wins_and_both_reviews_stay(account, first_to_sync):
    desk, phone = account.two_devices("one")
    cid = desk.note("one").card_ids()[0]
    for device, ease, secs in [(phone, 1, 100), (desk, 4, 50)]:
        device.review(1, ease=ease)
        device.age("cards", cid, secs)
        device.age("decks", 1, secs)  # counts what was studied today
    devices = (desk, phone) if first_to_sync == "desk" else (phone, desk)
    fresh = account.settle(*devices)
    assert fresh.col.get_card(cid).type == 2
    assert sorted(fresh.col.db.list("select ease from revlog")) == [1, 4]


@pytest.mark.parametrize("first_to_sync", ["desk", "phone"])
def test_the_newer_edit_of_a_deck_wins(account, first_to_sync):
    desk, phone = account.two_devices()
    for device, name, secs in [(phone, "older", 100), (desk, "newer", 50)]:
        device.col.decks.rename(1, name)
        device.age("decks", 1, secs)
    devices = (desk, phone) if first_to_sync == "desk" else (phone, desk)
    assert account.settle(*devices).col.decks.get(1)["name"] == "newer"


@pytest.mark.parametrize("first_to_sync", ["desk", "phone"])
def test_the_newer_edit_of_deck_options_wins(account, first_to_sync):
    desk, phone = account.two_devices()
    for device, name, secs in [(phone, "older", 100), (desk, "newer", 50)]:
        options = device.col.decks.get_config(1)
        options["name"] = name
        device.col.decks.update_config(options)
        device.age("deck_config", 1, secs)
    devices = (desk, phone) if first_to_sync == "desk" else (phone, desk)
    assert account.settle(*devices).col.decks.get_config(1)["name"] == "newer"


@pytest.mark.parametrize("first_to_sync", ["desk", "phone"])
def test_the_newer_edit_of_a_notetype_wins(account, first_to_sync):
    desk, phone = account.two_devices()
    for device, css, secs in [(phone, "older", 100), (desk, "newer", 50)]:
        basic = device.col.models.by_name("Basic")
        basic["css"] = css
        device.col.models.update_dict(basic)
        device.age("notetypes", basic["id"], secs)
        device.col.db.execute("update col set mod = mod - ?", secs * 1000)
    devices = (desk, phone) if first_to_sync == "desk" else (phone, desk)
    fresh = account.settle(*devices)
    assert fresh.col.models.by_name("Basic")["css"] == "newer"


def test_edits_of_different_cards_of_one_note_are_both_kept(account):
    desk = account.device("desk")
    note = desk.add_note("a", "b", notetype="Basic (and reversed card)")
    desk.upload()
    phone = account.device_in_sync("phone")
    first, second = note.card_ids()
    desk.col.set_user_flag_for_cards(1, [first])
    phone.col.set_user_flag_for_cards(2, [second])
    fresh = account.settle(desk, phone)
    assert [fresh.col.get_card(cid).flags for cid in (first, second)] == [1, 2]


@pytest.mark.parametrize("first_to_sync", ["desk", "phone"])
def test_a_deletion_wins_over_an_edit(account, first_to_sync):
    desk, phone = account.two_devices()
    desk.col.remove_notes([desk.note("one").id])
    phone.age("notes", phone.edit("one", "edited later").id, -100)
    devices = (desk, phone) if first_to_sync == "desk" else (phone, desk)
    assert account.settle(*devices).fronts() == ["three", "two"]


def test_a_review_of_a_card_that_another_device_deleted_stays_in_the_log(account):
    desk, phone = account.two_devices("one")
    desk.col.remove_notes([desk.note("one").id])
    phone.review(1)
    fresh = account.settle(desk, phone)
    assert (fresh.fronts(), fresh.count("cards"), fresh.count("revlog")) == ([], 0, 1)


def test_both_devices_delete_the_same(account):
    desk, phone = account.two_devices()
    for device in (desk, phone):
        device.col.remove_notes([device.note("one").id])
    assert account.settle(desk, phone).fronts() == ["three", "two"]


def test_a_note_is_added_to_a_deck_that_another_device_deleted(account):
    desk = account.device("desk")
    desk.add_note("one", deck="doomed")
    desk.upload()
    phone = account.device_in_sync("phone")
    desk.col.decks.remove([desk.col.decks.id("doomed")])
    phone.add_note("two", deck="doomed")
    desk.sync()
    phone.sync()
    desk.sync()
    assert phone.fronts() == desk.fronts() == ["two"]
    # The client's check gives the orphaned card a deck again; that is a change as any other.
    phone.col.fix_integrity()
    account.settle(phone, desk)


@pytest.mark.parametrize("newer", ["desk", "phone"])
def test_the_config_of_the_newer_collection_wins(account, newer):
    desk, phone = account.two_devices()
    phone.col.set_config("who", "phone")
    desk.col.set_config("who", "desk")
    older = phone if newer == "desk" else desk
    older.sync()  # gets a later stamp by it than the other's change
    fresh = account.settle(desk, phone)
    assert fresh.col.get_config("who") == older.name
