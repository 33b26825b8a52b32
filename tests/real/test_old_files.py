"""Files of old clients, uploaded as they are: the real client finds in them what it makes of such a file itself."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from anki.collection import Collection

from rows import assert_same, rows
from wire import request

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
FILES = [f"old_{version}_schema11" for version in ("2.0.52", "2.1.15", "2.1.25", "2.1.44", "23.10")]
FILES += [f"mid_schema{version}" for version in (14, 15, 16, 17, 18)] + ["rich11"]

# What the upload settles: nothing is left that waits for a sync. And what each client stamps when it opens a file.
SETTLED = {(table, "usn") for table in ("cards", "config", "deck_config", "decks", "graves", "notes", "notetypes", "revlog", "tags", "templates")}
# `col.usn` ends above that of every row, also for a client that does not raise it before it uploads.
STAMPED = {("col", "mod"), ("col", "ls"), ("col", "usn"), ("config", "mtime_secs")}


@pytest.fixture(params=FILES)
def old_file(request):
    return VECTORS / f"{request.param}.anki2"


def uploaded(account, old_file, name="desk"):
    """A device that has downloaded an old file after it was uploaded."""
    device = account.device(name)
    answer = request(account, "upload", old_file.read_bytes(), device.login())
    assert answer.text == "OK"
    device.download()
    assert device.col.sched.day_cutoff  # writes a key, as it does when the client has opened the file by itself
    return device


def opened(old_file, folder):
    """The file as the client upgrades it by itself."""
    folder.mkdir()
    path = folder / "collection.anki2"
    shutil.copy(old_file, path)
    path.chmod(0o600)
    col = Collection(str(path))
    assert col.sched.day_cutoff
    return col


def test_the_client_finds_what_it_would_have_made_of_the_file(account, old_file, tmp_path):
    device = uploaded(account, old_file)
    own = opened(old_file, tmp_path / "own")
    try:
        assert_same(rows(device.col), rows(own), SETTLED | STAMPED, "uploaded / opened by the client")
        assert device.col.db.scalar("select usn from col") > device.col.db.scalar("select max(usn) from decks")
        assert device.col.db.list("pragma integrity_check") == ["ok"]
        # Some files hold what the client mends in any case, such as a missing field.
        assert list(device.col._backend.check_database()) == list(own._backend.check_database())
        problems, ok = device.col.fix_integrity()
        assert ok, problems
    finally:
        own.close()


def test_an_uploaded_old_file_goes_on_syncing(account, old_file, tmp_path):
    # As clients do before they upload; these files were never synced.
    about_to_upload = tmp_path / "collection.anki2"
    about_to_upload.write_bytes(old_file.read_bytes())
    with contextlib.closing(sqlite3.connect(about_to_upload)) as db, db:
        db.execute("update col set usn = usn + 1")
    desk = uploaded(account, about_to_upload)
    phone = account.device_in_sync("phone")
    desk.add_note("made later", "back", notetype=desk.col.models.all_names_and_ids()[0].name)
    account.settle(desk, phone)
    assert "made later" in phone.fronts()
