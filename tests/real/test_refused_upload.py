"""Uploads that must not replace the account. The real client checks its own file first, so these are scripted."""

import os
import sqlite3

import pytest
import zstandard

from account import NOT_SYNCED
from rows import assert_same, rows
from wire import break_off, request, request_raw

REFUSED = []


def refused(damage=None, *, ours=False):
    """Registers a way to damage the bytes of a good collection. Some of them the official server takes."""
    def register(damage):
        REFUSED.append(pytest.param(damage, id=damage.__name__, marks=pytest.mark.ours if ours else ()))
        return damage
    return register(damage) if damage else register


def by_sql(*statements):
    """A damage that SQLite itself can do."""
    def damage(good, path):
        path.write_bytes(good)
        db = sqlite3.connect(path, isolation_level=None)
        # A stand-in, enough to write to tables that no statement has to sort.
        db.create_collation("unicase", lambda a, b: (a.casefold() > b.casefold()) - (a.casefold() < b.casefold()))
        for statement in statements:
            db.execute(statement)
        db.execute("pragma wal_checkpoint(truncate)")
        db.close()
        return path.read_bytes()
    return damage


@refused(ours=True)
def nothing_at_all(good, path):
    """The official server takes it for an empty collection, and the account is gone."""
    return b""


@refused
def a_text(good, path):
    return b"this is not a collection" * 100


@refused
def a_file_cut_in_the_middle(good, path):
    return good[:len(good) // 2 // 4096 * 4096]


@refused
def a_file_cut_within_a_page(good, path):
    return good[:-1000]


@refused
def only_the_header(good, path):
    return good[:100]


@refused
def a_page_of_noise(good, path):
    page = 4096 * (len(good) // 4096 // 2)
    return good[:page] + os.urandom(4096) + good[page + 4096:]


@refused
def an_index_that_lacks_a_row(good, path):
    return by_sql("pragma writable_schema = on",
                  "delete from sqlite_master where name = 'ix_cards_nid'",
                  "insert into sqlite_master select type, 'ix_cards_nid', tbl_name, rootpage, 'CREATE INDEX ix_cards_nid ON cards (nid)' "
                  "from sqlite_master where name = 'ix_cards_usn'")(good, path)


@refused(ours=True)
def a_database_of_something_else(good, path):
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path)
    db.execute("create table things (id integer primary key)")
    db.commit()
    db.close()
    return path.read_bytes()


@refused
def no_col_table(good, path):
    return by_sql("drop table col")(good, path)


@refused
def an_empty_col_table(good, path):
    return by_sql("delete from col")(good, path)


@refused(ours=True)
def two_rows_in_col(good, path):
    return by_sql("insert into col select 2, crt, mod, scm, ver, dty, usn, ls, conf, models, decks, dconf, tags from col")(good, path)


@refused
def a_schema_of_the_future(good, path):
    return by_sql("update col set ver = 99")(good, path)


@refused(ours=True)
def a_trigger(good, path):
    return by_sql("create trigger t after insert on notes begin delete from revlog; end")(good, path)


@refused(ours=True)
def a_view(good, path):
    return by_sql("create view v as select * from notes")(good, path)


@refused(ours=True)
def no_cards_table(good, path):
    return by_sql("drop table cards")(good, path)


@refused(ours=True)
def a_deck_that_cannot_be_read(good, path):
    return by_sql("update decks set kind = x'ffffffffff' where id = 1")(good, path)


@refused(ours=True)
def a_notetype_that_cannot_be_read(good, path):
    return by_sql("update notetypes set config = x'0a'")(good, path)


@pytest.mark.parametrize("damage", REFUSED)
def test_a_bad_upload_is_refused_and_the_old_collection_stays(account, tmp_path, damage):
    desk, phone = account.two_devices()
    good = file_of(account, desk)
    before = rows(phone.col)
    answer = request(account, "upload", damage(good, tmp_path / "damaged.anki2"), desk.auth.hkey)
    assert answer.status == 200
    assert answer.text != "OK" and len(answer.text) > 10, "the client shows this to its user"
    assert_same(before, rows(account.settle(desk, phone).col), NOT_SYNCED, "before / after")


def test_the_undamaged_file_would_have_been_taken(account, tmp_path):
    desk, phone = account.two_devices()
    assert request(account, "upload", by_sql("select 1")(file_of(account, desk), tmp_path / "good.anki2"), desk.auth.hkey).text == "OK"
    phone.download()
    account.settle(phone)


@pytest.mark.parametrize("damage", [
    pytest.param(lambda frame: b"", id="empty", marks=pytest.mark.ours),
    pytest.param(lambda frame: b"not zstd" * 100, id="no zstd"),
    pytest.param(lambda frame: frame[:-500], id="truncated", marks=pytest.mark.ours),
    pytest.param(lambda frame: frame[:-1], id="truncated by a byte"),
    pytest.param(lambda frame: frame + b"x", id="something after the frame", marks=pytest.mark.ours),
])
def test_a_body_that_cannot_be_decoded_is_no_upload(account, damage):
    """The official server takes these for whole if what it could decode is a collection, or nothing."""
    desk, phone = account.two_devices()
    before = rows(phone.col)
    answer = request_raw(account, "upload", damage(zstandard.compress(file_of(account, desk))), desk.auth.hkey)
    assert answer.status in (200, 400) and answer.body != b"OK", answer
    assert_same(before, rows(account.settle(desk, phone).col), NOT_SYNCED, "before / after")


def test_an_upload_that_breaks_off_changes_nothing(account):
    desk, phone = account.two_devices()
    before, frame = rows(phone.col), zstandard.compress(file_of(account, desk))
    break_off(account, "upload", frame[:len(frame) // 2], desk.auth.hkey)
    break_off(account, "upload", frame, desk.auth.hkey)  # whole, but for the last chunk that says so
    assert_same(before, rows(account.settle(desk, phone).col), NOT_SYNCED, "before / after")


@pytest.mark.parametrize("hkey", ["", "0" * 40])
def test_a_stranger_cannot_upload(account, hkey):
    desk, phone = account.two_devices()
    assert request(account, "upload", file_of(account, desk), hkey).status == 403
    account.settle(desk, phone)


def file_of(account, device) -> bytes:
    """The account's collection as the server sends it."""
    answer = request(account, "download", {"_pad": None}, device.auth.hkey)
    assert answer.status == 200 and answer.body.startswith(b"SQLite format 3\0")
    return answer.body
