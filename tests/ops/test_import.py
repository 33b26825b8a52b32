"""`ankipi import`: the data of other sync servers, and clients that go on where they were."""

import hashlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from anki.collection import Collection
from anki.errors import SyncError

from commands import done, refused, run
from server import Server
from test_media import held, put, sync_media


def ankisyncd_hash(name: str, password: str, salt: str = "0123456789abcdef") -> str:
    """What `ankisyncctl adduser` stores."""
    return hashlib.sha256((name + password + salt).encode()).hexdigest() + salt


class Old:
    """The folder of an ankisyncd that devices were in sync with."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir()
        self.auth = sqlite3.connect(root / "auth.db")
        self.auth.execute("CREATE TABLE auth (username VARCHAR PRIMARY KEY, hash VARCHAR)")
        sqlite3.connect(root / "session.db").execute("CREATE TABLE session (hkey VARCHAR PRIMARY KEY, skey VARCHAR, username VARCHAR, path VARCHAR)")

    def add(self, name: str, password: str | None, collection: Path, media: Path, last_usn: int) -> None:
        if password is not None:
            with self.auth:
                self.auth.execute("INSERT INTO auth VALUES (?, ?)", (name, ankisyncd_hash(name, password)))
        home = self.root / "collections" / name
        home.mkdir(parents=True)
        shutil.copy(collection, home / "collection.anki2")
        # It kept schema 11, as clients did at that time.
        Collection(str(home / "collection.anki2")).close(downgrade=True)
        for path in home.glob("collection.media*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(media, home / "collection.media")
        index = sqlite3.connect(home / "collection.media.server.db")
        with index:
            index.execute("CREATE TABLE media (fname TEXT NOT NULL PRIMARY KEY, usn INT NOT NULL, csum TEXT)")
            index.execute("CREATE TABLE meta (dirMod INT, lastUsn INT)")
            index.execute("INSERT INTO meta VALUES (0, ?)", (last_usn,))
            for number, path in enumerate(sorted(media.iterdir()), 1):
                index.execute("INSERT INTO media VALUES (?, ?, ?)", (path.name, number, hashlib.sha1(path.read_bytes()).hexdigest()))
        index.close()


@pytest.fixture
def old(tmp_path, new_server, new_account):
    """An ankisyncd of anna, who has an account, and bob, who has none; and anna's devices."""
    server = new_server("anna:secret")
    desk, phone = new_account(server, "anna", "secret").two_devices()
    for number in range(30):
        put(desk, f"bild {number}.jpg", bytes([number]) * 5000)
    sync_media(desk)
    sync_media(phone)
    server.stop()
    old = Old(tmp_path / "ankisyncd")
    for name, password in (("anna", "secret"), ("bob", None)):
        old.add(name, password, server.base / "anna/collection.anki2", server.base / "anna/media", last_usn=70)
    return old, desk, phone


@pytest.fixture
def empty(tmp_path):
    """A server that is set up and has not run yet."""
    server = object.__new__(Server)
    server.base = tmp_path / "new"
    server.env = {"SYNC_BASE": str(server.base), "PATH": "/usr/bin:/bin"}
    return server


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("column", ["lastUsn", "last_usn"], ids=["ankisyncd", "anki-sync-server-rs"])
def test_ankisyncd_is_taken_over_with_passwords_and_media(old, empty, tmp_path, column):
    old, desk, phone = old
    for index in old.root.glob("collections/*/collection.media.server.db"):
        with sqlite3.connect(index) as db:
            db.execute(f"ALTER TABLE meta RENAME COLUMN lastUsn TO {column}")
        db.close()
    before = files(old.root)
    said = done(empty, "import", str(old.root))
    assert "anna: 3 notes, 3 cards, 30 media files; logs in with the password of before" in said
    assert "bob: 3 notes, 3 cards, 30 media files; has no password yet: `ankipi user add bob`" in said
    assert files(old.root) == before, "the source was changed"
    done(empty, "check", "--deep")

    server = Server(empty.base, [])
    try:
        for device in (desk, phone):
            device.use(server.url)
            device.auth = None
        desk.password = "wrong"
        with pytest.raises(SyncError):
            desk.login()
        assert "$ankisyncd$" in (empty.base / "users").read_text()
        desk.password = "secret"
        # No full sync: both had been in sync with the old server.
        desk.sync()
        assert (empty.base / "users").read_text().startswith("anna:$pbkdf2-sha256$i=600000,")
        phone.sync()
        put(desk, "new.jpg", b"new")
        desk.add_note("new")
        desk.sync()
        phone.sync()
        assert phone.fronts() == ["new", "one", "three", "two"]
        server.mark_log()
        sync_media(desk)
        sync_media(phone)
        assert held(desk) == held(phone) and len(held(desk)) == 31
        # Only the new file travelled.
        assert server.log().count("downloadFiles") == 1 and "1 file," in server.log().split("downloadFiles")[1], server.log()
        server.power_cut()
        phone.sync()
        assert "no user" not in done(server, "device", "list", "anna")
    finally:
        server.stop()


def test_what_is_there_already_is_left_alone_and_the_rest_is_taken(old, empty):
    old, _, _ = old
    (empty.base / "anna").mkdir(parents=True)
    (empty.base / "anna/precious").write_text("x")
    ended = run(empty, "import", str(old.root))
    assert ended.returncode == 1
    assert "anna is left out: " in ended.stderr and "/anna exists already" in ended.stderr
    assert "bob: 3 notes" in ended.stdout
    assert [path.name for path in (empty.base / "anna").iterdir()] == ["precious"]
    assert not (empty.base / "users").exists()


def test_a_damaged_collection_leaves_nothing_behind(old, empty):
    old, _, _ = old
    path = old.root / "collections/anna/collection.anki2"
    path.write_bytes(path.read_bytes()[:10_000])
    ended = run(empty, "import", str(old.root))
    assert ended.returncode == 1 and "anna is left out" in ended.stderr and "bob: 3 notes" in ended.stdout
    assert sorted(path.name for path in empty.base.iterdir() if not path.name.startswith(".")) == ["bob"]


def test_an_official_folder_needs_no_import_and_others_are_named(new_server, new_account, empty, tmp_path):
    server = new_server("anna:secret")
    new_account(server, "anna", "secret").two_devices()
    server.stop()
    before = files(server.base)
    said = done(empty, "import", str(server.base))
    assert "nothing to import" in said and f"SYNC_BASE={server.base}" in said
    assert files(server.base) == before and not empty.base.exists()
    assert "is not the data folder of a known sync server" in refused(empty, "import", str(tmp_path))
