"""Names that must be unique, taken on two devices at once.

With the official server the two devices never agree again: the device that syncs last renames the deck that it is sent,
while the server renames the deck that it is sent, so each has `Spanish` and `Spanish+` the other way round. The way to agree
is to do what the client does: rename the deck which the server had already, so that the newcomer keeps its name, and
to send the longer of such names first, because a client makes names unique one after the other.
"""

import pytest

# All equal to the collation of the file: case and full case folding do not count.
TWINS = [("Spanish", "Spanish"), ("Spanish", "sPANISH"), ("Straße", "STRASSE"), ("É", "é"), ("ﬀ", "FF"), ("Ω", "Ω")]


@pytest.mark.ours
@pytest.mark.parametrize("at_desk, at_phone", TWINS)
def test_two_decks_of_one_name_become_two_names(account, at_desk, at_phone):
    desk, phone = account.two_devices()
    ids = desk.add_deck(at_desk), phone.add_deck(at_phone)
    fresh = account.settle(desk, phone)
    names = {fresh.col.decks.get(did)["name"] for did in ids}
    assert len(names) == 2 and {name.rstrip("+") for name in names} <= {at_desk, at_phone}


@pytest.mark.ours
@pytest.mark.parametrize("at_desk, at_phone", TWINS)
def test_two_notetypes_of_one_name_become_two_names(account, at_desk, at_phone):
    desk, phone = account.two_devices()
    ids = desk.add_notetype(at_desk), phone.add_notetype(at_phone)
    fresh = account.settle(desk, phone)
    names = {fresh.col.models.get(ntid)["name"] for ntid in ids}
    assert len(names) == 2 and {name.rstrip("+") for name in names} <= {at_desk, at_phone}


@pytest.mark.ours
def test_the_cards_stay_with_their_own_deck(account):
    desk, phone = account.two_devices()
    desk.add_note("from the desk", deck="Spanish::Verbs")
    phone.add_note("from the phone", deck="spanish::verbs")
    fresh = account.settle(desk, phone)
    decks = [fresh.col.decks.name(fresh.note(front).cards()[0].did) for front in ("from the desk", "from the phone")]
    assert len(set(decks)) == 2


@pytest.mark.ours
def test_a_renamed_deck_takes_the_name_of_a_new_one(account):
    desk = account.device("desk")
    old = desk.add_deck("Old")
    desk.add_note("one", deck="Old")
    desk.upload()
    phone = account.device_in_sync("phone")
    desk.col.decks.rename(old, "New")
    phone.add_deck("New")
    account.settle(desk, phone)


def test_decks_that_swap_their_names(account):
    desk = account.device("desk")
    a, b = desk.add_deck("A"), desk.add_deck("B")
    desk.upload()
    phone = account.device_in_sync("phone")
    for did, name in [(a, "swap"), (b, "A"), (a, "B")]:
        desk.col.decks.rename(did, name)
    desk.sync()
    phone.sync()
    assert {phone.col.decks.name(did).rstrip("+") for did in (a, b)} == {"A", "B"}


def test_names_that_only_look_alike_are_kept(account):
    """Composed and decomposed letters are one name; these are not."""
    desk, phone = account.two_devices()
    for device, names in [(desk, ["Résumé", "ı", "µ", "²"]), (phone, ["Resume", "i", "m", "2"])]:
        for name in names:
            device.add_deck(name)
    fresh = account.settle(desk, phone)
    assert fresh.count("decks") == 1 + 8


def test_tags_that_differ_in_case_are_one_tag(account):
    desk, phone = account.two_devices()
    desk.add_note("from the desk", tags="Verb Straße")
    phone.add_note("from the phone", tags="verb STRASSE")
    # Each keeps the spelling that it had first.
    fresh = account.settle(desk, phone, ignoring={("tags", "tag")})
    assert fresh.count("tags") == 2
