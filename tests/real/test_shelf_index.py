"""An upload whose index is in the wrong order: SQLite would find only some of the rows by it, and a later sync send only those.

The real client of today makes all indexes anew before it uploads, so a scripted one sends the file.
"""

import shutil
import sqlite3
from pathlib import Path

import pytest

from wire import request


def connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    db.create_collation("unicase", lambda a, b: (a.casefold() > b.casefold()) - (a.casefold() < b.casefold()))
    return db


def reverse(path: Path, index: str, table: str, column: str) -> None:
    """Turns the index around, which SQLite's full check then calls damage."""
    db = connect(path)
    db.executescript(f"""pragma journal_mode = delete; drop index {index}; create index {index} on {table} ({column} desc);
        pragma writable_schema = on;
        update sqlite_schema set sql = 'create index {index} on {table} ({column})' where name = '{index}';""")
    db.close()
    db = connect(path)
    assert db.execute(f"pragma integrity_check({table})").fetchone()[0] != "ok"
    assert db.execute("pragma quick_check").fetchone()[0] == "ok"
    db.close()


@pytest.mark.parametrize("index,table,column", [("ix_cards_nid", "cards", "nid"), ("ix_notes_csum", "notes", "csum"), ("ix_revlog_cid", "revlog", "cid")])
def test_it_is_refused_and_the_client_can_mend_it(account, tmp_path, index, table, column):
    desk, phone = account.two_devices()
    desk.add_notes(100)
    desk.review(3)
    desk.sync()
    path = Path(desk.col.path)
    desk.close()
    shutil.copy(path, tmp_path / "sent")
    desk.col = type(phone.col)(str(path))
    reverse(tmp_path / "sent", index, table, column)
    answer = request(account, "upload", (tmp_path / "sent").read_bytes(), desk.auth.hkey)
    assert answer.status == 200 and answer.text != "OK" and "Check Database" in answer.text, answer
    account.settle(desk, phone)  # nothing was replaced
    desk.upload()
    phone.download()
    account.settle(desk, phone)
