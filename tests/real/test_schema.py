"""Changes that a normal sync cannot carry, and collections that disagree."""

import pytest
from anki.errors import SyncError

from device import FULL_SYNC, NO_CHANGES


def add_field(device):
    basic = device.col.models.by_name("Basic")
    device.col.models.add_field(basic, device.col.models.new_field("Extra"))
    device.col.models.update_dict(basic)


def change_sort_field(device):
    basic = device.col.models.by_name("Basic")
    device.col.models.set_sort_index(basic, 1)
    device.col.models.update_dict(basic)


def delete_template(device):
    both = device.col.models.by_name("Basic (and reversed card)")
    device.col.models.remove_template(both, both["tmpls"][1])
    device.col.models.update_dict(both)


def delete_notetype(device):
    device.col.models.remove(device.col.models.by_name("Cloze")["id"])


def delete_options(device):
    device.col.decks.remove_config(device.col.decks.add_config_returning_id("short-lived"))


@pytest.mark.parametrize("change", [add_field, change_sort_field, delete_template, delete_notetype, delete_options])
def test_a_schema_change_needs_a_full_sync_on_both_sides(account, change):
    desk, phone = account.two_devices()
    desk.add_note("a", "b", notetype="Basic (and reversed card)")
    desk.sync()
    phone.sync()
    change(desk)
    assert desk.try_sync() == FULL_SYNC
    desk.upload()
    assert desk.try_sync() == NO_CHANGES
    assert phone.try_sync() == FULL_SYNC
    phone.download()
    assert phone.try_sync() == NO_CHANGES
    phone.add_note("later")
    account.settle(desk, phone)


def test_the_other_device_may_keep_its_own_instead(account):
    desk, phone = account.two_devices()
    add_field(desk)
    phone.add_note("only here")
    phone.sync()
    assert desk.try_sync() == FULL_SYNC
    desk.download()
    assert "only here" in desk.fronts()
    assert [field["name"] for field in desk.col.models.by_name("Basic")["flds"]] == ["Front", "Back"]
    account.settle(desk, phone)


@pytest.mark.parametrize("damage", ["delete from cards where id = (select min(id) from cards)",
                                    "delete from notes where id = (select min(id) from notes)",
                                    "insert into revlog values (1, 1, 0, 1, 1, 1, 1, 1, 1)"])
def test_a_device_that_lost_a_row_is_told_and_asked_for_a_full_sync(account, damage):
    desk, phone = account.two_devices()
    phone.col.db.execute(damage)
    phone.add_note("four")
    with pytest.raises(SyncError):
        phone.try_sync()
    assert phone.try_sync() == FULL_SYNC
    # Nothing of the failed sync has reached the server, and the other device works on.
    desk.sync()
    assert desk.fronts() == ["one", "three", "two"]
    phone.download()
    assert account.settle(desk, phone).fronts() == ["one", "three", "two"]


def test_after_a_failed_check_the_device_may_also_upload(account):
    desk, phone = account.two_devices()
    phone.col.db.execute("delete from revlog")
    phone.col.db.execute("delete from cards where id = (select min(id) from cards)")
    phone.add_note("four")
    with pytest.raises(SyncError):
        phone.try_sync()
    phone.col.fix_integrity()
    phone.upload()
    assert desk.try_sync() == FULL_SYNC
    desk.download()
    assert "four" in account.settle(phone, desk).fronts()
