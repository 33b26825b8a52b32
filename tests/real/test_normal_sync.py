"""Every kind of change travels, in both directions, unaltered."""

import pytest

from account import NOT_SYNCED
from device import Device
from rows import USNS, assert_same, rows

CHANGES = []


def change(make):
    """Registers something that a user does; it is tried on each of two devices."""
    CHANGES.append(pytest.param(make, id=make.__name__))
    return make


def cards(device: Device) -> list[int]:
    return device.col.db.list("select id from cards order by id")


@change
def nothing(device):
    """Not even a row, but the collection says that it was changed."""
    device.col.db.execute("update col set mod = mod + 1")


@change
def notes_in_many_scripts(device):
    for text in ["Grüße, ﬁ, e\u0301 and é", "日本語 漢字 かな", "한국어", "עברית العربية", "हिन्दी ไทย", "👩‍👩‍👧‍👦🏳️‍🌈", "\U00020000\u200b\u202e",
                 "ÅÅ ß ẞ ﬀ İı", " leading and trailing \u3000", "\t tab\r\nline", "\"quotes\" 'single' \\ back / slash", "%s {} $1", "\u007f\u0001"]:
        device.add_note(text, text * 3, tags="日本 ß::ẞ")


@change
def notes_with_html_and_media(device):
    for text in ['<div class="a">b<br>c</div>', '<img src="a b.jpg"> text', "[sound:x.mp3]", "&lt;b&gt; &amp;amp; &nbsp; &notanentity; &#x41;", "<script>x</script>y",
                 "<!-- a comment --> b", "<style>p{}</style>c", "\\(x^2\\) [latex]y[/latex]", "<b>not closed", "a<", "<>", "{{c1::cloze}}"]:
        device.add_note(text, "back")


@change
def numeric_sort_fields(device):
    """The column is an integer one, so that texts which look like numbers are stored as such."""
    for text in ["1", "007", "-5", "+5", " 12 ", "1.5", "1.0", "1e3", "9223372036854775807", "9223372036854775808", "0x10", "1_000", "١٢", ".5", "-0", "1e400", "nan"]:
        device.add_note(text, text)


@change
def empty_and_very_long_fields(device):
    device.add_note(" ", "an empty first field is refused, a blank is not")
    device.add_note("long " + "x" * 2_000_000, "long " + "ü" * 1_000_000)
    device.add_note("lines", "\n".join(str(n) for n in range(100_000)))


@change
def edited_notes(device):
    note = device.edit("one", "uno")
    note.tags = ["a", "b::c", "日本"]
    note.fields[1] = "changed"
    device.col.update_note(note)


@change
def every_stock_notetype(device):
    for name in ["Basic (and reversed card)", "Basic (optional reversed card)", "Basic (type in the answer)"]:
        device.add_note("stock", "back", notetype=name)
    device.add_note("{{c1::a}} {{c2::b}} {{c5::c}}", "extra", notetype="Cloze")


@change
def deleted_notes(device):
    device.col.remove_notes([device.note("one").id, device.note("two").id])


@change
def deleted_cards(device):
    device.add_note("kept", "back", notetype="Basic (and reversed card)")
    device.col.remove_cards_and_orphaned_notes(cards(device)[:1] + cards(device)[-1:])


@change
def new_decks(device):
    for name in ["top", "a::b::c", "A::B::d", "日本::語", "ends with space ", "x" * 300, "quote\"d", "back\\slash", "one::", "  "]:
        device.col.decks.id(name)


@change
def renamed_and_moved_decks(device):
    decks = device.col.decks
    device.add_note("four", deck="a::b::c")
    decks.rename(decks.id("a::b"), "a::renamed")
    decks.reparent([decks.id("a::renamed")], decks.id("new parent"))
    decks.rename(1, "No longer the default")
    deck = decks.by_name("new parent")
    deck["desc"], deck["collapsed"], deck["extendNew"] = "<b>described</b>", True, 7
    deck["an add-on's key"] = {"z": 1, "a": [1, 2.5, None, "ü"]}
    decks.save(deck)


@change
def deleted_decks(device):
    device.add_note("goes with its deck", deck="gone::child")
    device.col.decks.remove([device.col.decks.id("gone")])


@change
def filtered_decks(device):
    did = device.col.decks.new_filtered("Cram::filtered")
    deck = device.col.decks.get(did)
    deck["terms"] = [["is:new", 2, 1], ["tag:x", 5, 6]]
    deck["resched"], deck["previewDelay"] = False, 3
    device.col.decks.save(deck)
    assert device.col.sched.rebuild_filtered_deck(did).count == 2
    emptied = device.col.decks.new_filtered("emptied")
    device.col.sched.rebuild_filtered_deck(emptied)
    device.col.sched.empty_filtered_deck(emptied)


@change
def deck_options(device):
    decks = device.col.decks
    preset = decks.add_config("Hard ones 日本")
    preset["new"] |= {"perDay": 7, "delays": [1.5, 10.0, 1440.0], "ints": [2, 6, 0], "initialFactor": 2300}
    preset["rev"] |= {"perDay": 300, "ivlFct": 0.87, "hardFactor": 1.15}
    preset["lapse"] |= {"leechAction": 1, "mult": 0.25}
    preset |= {"maxTaken": 30, "desiredRetention": 0.93, "fsrsParams6": [0.1, 2.25, 3.0], "an add-on's": {"key": [True, None]}}
    decks.update_config(preset)
    deck = decks.by_name("Default")
    deck["desiredRetention"] = 85
    decks.save(deck)
    decks.set_config_id_for_deck_dict(deck, preset["id"])
    default = decks.get_config(1)
    default["new"]["perDay"] = 99
    decks.update_config(default)


@change
def tags(device):
    col = device.col
    col.tags.bulk_add(col.find_notes(""), "one two::three ÜBER::日本 x:y")
    col.tags.rename("two::three", "2::3")
    col.tags.bulk_remove(col.find_notes("one"), "one")


@change
def config(device):
    for key, value in {"text": "ü日本", "int": 12345678901234, "float": 1.25, "list": [1, [2, {"a": None}]], "日本": True, "": "", "null": None}.items():
        device.col.set_config(key, value)
    device.col.remove_config("sortType")


@change
def a_new_notetype(device):
    models = device.col.models
    made = models.new("Verbs 日本")
    for name in ["Infinitive", "Past", "ß"]:
        models.add_field(made, models.new_field(name))
    made["flds"][1] |= {"sticky": True, "rtl": True, "font": "Noto Sans", "size": 33, "description": "d", "an add-on's": [1]}
    for name, front in [("Forward", "{{Infinitive}}"), ("Back", "{{#Past}}{{Past}}{{/Past}}")]:
        template = models.new_template(name)
        template |= {"qfmt": front, "afmt": "{{FrontSide}}<hr>{{ß}}", "bqfmt": "{{Past}}", "bfont": "Arial", "bsize": 14}
        models.add_template(made, template)
    made |= {"css": ".card { color: red }", "latexPre": "pre", "latexPost": "post", "latexsvg": True, "an add-on's": {"b": 1, "a": 2}}
    models.add_dict(made)
    device.add_note("to go", "went", notetype="Verbs 日本")
    device.add_note("to be", "", notetype="Verbs 日本")


@change
def changed_templates_and_css(device):
    basic = device.col.models.by_name("Basic")
    basic["tmpls"][0] |= {"qfmt": "<b>{{Front}}</b>", "afmt": "{{FrontSide}} {{Back}}", "name": "Renamed"}
    basic["css"] += "\n.日本 { }"
    basic["flds"][0]["name"] = "Question"
    device.col.models.update_dict(basic)
    reversed_too = device.col.models.by_name("Basic (and reversed card)")
    reversed_too["name"] = "Both ways"
    device.col.models.update_dict(reversed_too)


@change
def reviews(device):
    device.review(1, ease=3)
    device.review(1, ease=1)
    device.review(1, ease=4)
    device.review(1, ease=2)


@change
def reviews_in_a_filtered_deck(device):
    did = device.col.decks.new_filtered("Cram")
    device.col.sched.rebuild_filtered_deck(did)
    device.review(2, deck="Cram", ease=3)


@change
def undone_reviews(device):
    device.review(2)
    device.col.undo()


@change
def suspended_buried_and_flagged_cards(device):
    one, two, three = cards(device)
    device.col.sched.suspend_cards([one])
    device.col.sched.bury_cards([two])
    device.col.set_user_flag_for_cards(5, [two, three])


@change
def rescheduled_cards(device):
    one, two, three = cards(device)
    device.col.sched.set_due_date([one], "5!")
    device.col.sched.set_due_date([two], "0")
    device.col.sched.schedule_cards_as_new([two], restore_position=True, reset_counts=True)
    device.col.sched.reposition_new_cards([three], starting_from=500, step_size=1, randomize=False, shift_existing=False)


@change
def moved_cards(device):
    device.col.set_deck(cards(device)[:2], device.col.decks.id("elsewhere"))


@pytest.mark.parametrize("make", CHANGES)
def test_what_one_device_does_the_other_gets(account, make):
    desk, phone = account.two_devices()
    make(desk)
    done = rows(desk.col)
    desk.sync()
    phone.sync()
    assert_same(done, rows(phone.col), NOT_SYNCED | USNS, "desk before its sync / phone")
    phone.add_note("thanks")  # and back
    account.settle(desk, phone)


def test_both_devices_work_between_two_syncs(account):
    desk, phone = account.two_devices("one", "two", "three", "four", "five", "six")
    desk.edit("one", "uno")
    phone.edit("two", "dos")
    desk.col.remove_notes([desk.note("three").id])
    phone.col.remove_notes([phone.note("four").id])
    desk.add_note("from the desk", deck="Desk::new")
    phone.add_note("from the phone", deck="Phone::new", tags="phone")
    desk.review(1)
    phone.col.sched.suspend_cards([phone.note("six").card_ids()[0]])
    fresh = account.settle(desk, phone)
    assert fresh.fronts() == ["dos", "five", "from the desk", "from the phone", "six", "uno"]
    assert fresh.count("revlog") == 1


def test_three_devices_take_turns(account):
    desk, phone = account.two_devices()
    tablet = account.device_in_sync("tablet")
    for turn in range(3):
        for device in (desk, phone, tablet):
            device.sync()  # first, or all would review the same card, in the same second
            device.add_note(f"{device.name} {turn}", deck=f"{device.name}::{turn}", tags=f"{device.name} t{turn}")
            device.review(1, deck=f"{device.name}::{turn}")
            device.sync()
    fresh = account.settle(desk, phone, tablet)
    assert len(fresh.fronts()) == 3 + 3 * 3
    assert fresh.count("revlog") == 9


def test_a_device_that_was_away_for_long_gets_everything_at_once(account):
    desk, phone = account.two_devices()
    for turn in range(5):
        desk.add_note(f"note {turn}")
        desk.col.remove_notes(desk.col.find_notes("one" if turn == 2 else "note:none"))
        desk.col.decks.id(f"deck {turn}")
        desk.sync()
    phone.add_note("from the phone")
    fresh = account.settle(phone, desk)
    assert fresh.fronts() == ["from the phone", "note 0", "note 1", "note 2", "note 3", "note 4", "three", "two"]


def test_a_note_that_was_deleted_everywhere_can_come_back(account):
    """As with an undone deletion or an import: the id is used again although the server has a grave for it."""
    desk, phone = account.two_devices()
    note = desk.note("one")
    row, card = (desk.col.db.first(f"select * from {table} where {key} = ?", note.id) for table, key in [("notes", "id"), ("cards", "nid")])
    desk.col.remove_notes([note.id])
    desk.sync()
    phone.sync()
    assert phone.fronts() == ["three", "two"]
    for table, values in [("notes", row), ("cards", card)]:
        desk.col.db.execute(f"insert into {table} values ({','.join('?' * len(values))})", *values)
        desk.col.db.execute(f"update {table} set usn = -1, mod = mod + 1 where id = ?", values[0])
    assert account.settle(desk, phone).fronts() == ["one", "three", "two"]
