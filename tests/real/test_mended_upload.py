"""Uploads of other programs and with what add-ons added: what Anki's own server takes, ankipi takes too, and brings it to
Anki's form. And the habits of third-party clients."""

import gzip
import io
import json
import sqlite3
import zipfile

import pytest
import zstandard

from test_refused_upload import by_sql, file_of
from wire import exchange, request, request_raw

MENDED = {
    "another order of columns": ["create table x (usn integer, oid integer, type integer)", "insert into x select usn, oid, type from graves",
                                 "drop table graves", "alter table x rename to graves"],
    "no key": ["create table x as select * from cards", "drop table cards", "alter table x rename to cards"],
    "an extra column": ["alter table notes add column addon text", "update notes set addon = 'kept'"],
    "an extra table": ["create table addon (id integer primary key, text)", "insert into addon values (1, 'kept')"],
    "an extra index": ["create index addon on notes (flds)"],
    "no indexes": ["drop index ix_notes_usn", "drop index ix_cards_nid"],
    "usn not raised": ["update notes set usn = 7", "update col set usn = 3"],
}


@pytest.mark.parametrize("change", MENDED)
def test_an_upload_of_another_program_is_taken_and_clients_go_on(account, tmp_path, change):
    desk, _ = account.two_devices()
    changed = by_sql(*MENDED[change])(file_of(account, desk), tmp_path / "changed.anki2")
    assert request(account, "upload", changed, desk.auth.hkey).text == "OK"
    one, two = account.device_in_sync("one"), account.device_in_sync("two")
    one.add_note("new on one")
    one.col.remove_notes(one.col.find_notes("three"))
    account.settle(one, two)
    two.add_note("new on two")
    account.settle(two, one)
    if "kept" in str(MENDED[change]):
        table = "notes" if "column" in change else "addon"
        held = account.device_in_sync("last").col.db.list(f"select {'addon' if table == 'notes' else 'text'} from {table}")
        assert "kept" in held


@pytest.mark.ours
def test_indexes_of_another_collation_are_rebuilt(account, tmp_path):
    """Anki's own server refuses these."""
    desk, _ = account.two_devices()
    for name in ["b", "A", "\u00e9", "Z"]:
        desk.add_note(name, tags=name)
        desk.add_deck(name)
    desk.sync()
    path = tmp_path / "other.anki2"
    path.write_bytes(file_of(account, desk))
    db = sqlite3.connect(path, isolation_level=None)
    db.create_collation("unicase", lambda a, b: (a < b) - (a > b))
    db.execute("reindex")
    db.close()
    assert request(account, "upload", path.read_bytes(), desk.auth.hkey).text == "OK"
    account.settle(account.device_in_sync("one"))


def test_a_collection_cut_from_an_apkg(account, tmp_path):
    """With a usn that was never raised, as such programs upload it."""
    desk, _ = account.two_devices()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as package:
        package.writestr("collection.anki21b", zstandard.compress(by_sql("update col set usn = 0")(file_of(account, desk), tmp_path / "cut.anki2")))
    body = zipfile.ZipFile(packed).read("collection.anki21b")  # a frame as it is in the package
    assert request_raw(account, "upload", body, desk.auth.hkey).text == "OK"
    one, two = account.device_in_sync("one"), account.device_in_sync("two")
    one.add_note("after it")
    account.settle(one, two)


def test_a_form_whose_compression_is_said_last(account):
    """A FormData of a browser has its fields in the order in which the page added them."""
    desk, _ = account.two_devices()
    parts = [("data", gzip.compress(json.dumps({"v": 10, "cv": "a,b,c"}).encode())), ("k", desk.auth.hkey.encode()), ("s", b"x"), ("c", b"1")]
    form = b"".join(b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value) for name, value in parts)
    answer = exchange(account, "meta", form + b"--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}, 30)
    assert answer.status == 200 and json.loads(answer.body)["cont"]


@pytest.mark.ours
@pytest.mark.parametrize("frames", [1, 3])
def test_bodies_in_several_frames_and_large_windows(account, frames):
    desk, phone = account.two_devices()
    file = file_of(account, desk)
    large = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True))
    step = -(-len(file) // frames)
    body = b"\x50\x2a\x4d\x18\x04\0\0\0seek".join([b"", *(large.compress(file[at:at + step]) for at in range(0, len(file), step))])
    assert request_raw(account, "upload", body, desk.auth.hkey).text == "OK"
    account.device_in_sync("one")
