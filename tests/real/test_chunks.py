"""Syncs of more rows than one chunk (250) holds."""

import pytest


def add_old_reviews(device, count: int) -> None:
    """Puts reviews of the past into the log; answering a thousand cards would take too long."""
    card = device.col.db.scalar("select min(id) from cards")
    rows = [[1_600_000_000_000 + n, card, -1, 1 + n % 4, n % 400 - 100, -600, 2500, n % 60_000, n % 3] for n in range(count)]
    device.col.db.executemany("insert into revlog values (?,?,?,?,?,?,?,?,?)", rows)
    # Without this the collection does not know that there is something to sync.
    device.col.db.execute("update col set mod = mod + 1")


def test_hundreds_of_notes_and_a_thousand_reviews_travel_both_ways(account):
    desk, phone = account.two_devices()
    desk.add_notes(620, "from the desk")
    add_old_reviews(desk, 1100)
    desk.sync()
    phone.add_notes(330, "from the phone")
    phone.sync()  # sends and fetches many chunks in one session
    fresh = account.settle(desk, phone)
    assert (fresh.count("notes"), fresh.count("cards"), fresh.count("revlog")) == (953, 953, 1100)


@pytest.mark.parametrize("notes, reviews", [(125, 0), (125, 1), (124, 1), (0, 250), (0, 251), (0, 249), (250, 250), (84, 83)])
def test_chunks_that_are_just_full_lose_nothing(account, notes, reviews):
    """A note brings a card, so 125 of them are 250 rows; an exactly full chunk is followed by an empty one."""
    desk, phone = account.two_devices()
    desk.add_notes(notes)
    add_old_reviews(desk, reviews)
    fresh = account.settle(desk, phone)
    assert (fresh.count("notes"), fresh.count("revlog")) == (3 + notes, reviews)


def test_hundreds_of_deletions_travel(account):
    desk, phone = account.two_devices()
    desk.add_notes(600)
    desk.sync()
    phone.sync()
    for n in range(300):
        phone.col.decks.id(f"deck {n}")
    phone.sync()
    desk.sync()
    desk.col.remove_notes(desk.col.find_notes("note*"))
    desk.col.decks.remove(desk.col.db.list("select id from decks where name like 'deck %'"))
    fresh = account.settle(desk, phone)
    assert fresh.fronts() == ["one", "three", "two"]
    assert fresh.count("decks") == 1


def test_one_sync_edits_what_another_just_added(account):
    desk, phone = account.two_devices()
    desk.add_notes(300)
    desk.sync()
    phone.sync()
    ids = phone.col.find_notes("note*")
    phone.col.tags.bulk_add(ids, "edited")
    phone.col.sched.suspend_cards(phone.col.find_cards("note*"))
    for table in ("notes", "cards"):
        phone.col.db.execute(f"update {table} set mod = mod + 1 where usn = -1")  # the next second
    account.settle(phone, desk)
    assert len(desk.col.find_notes("tag:edited is:suspended")) == 300
