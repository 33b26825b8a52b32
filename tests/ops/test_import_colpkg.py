"""`ankipi import FILE.colpkg USER`: packages that the real client has exported, and that `ankipi export` has written."""

import json
import os
import random
import sqlite3
import zipfile

import pytest

from account import NOT_SYNCED
from commands import done, refused, run
from device import FULL_SYNC
from rows import assert_same, rows
from test_media import held, put, sync_media


# A package that was never synced has its rows marked as pending. The server settles that, as it does in an upload.
DIFFERS = NOT_SYNCED | {("col", "scm")} | {(table, "usn") for table in (
    "notes", "cards", "revlog", "graves", "decks", "deck_config", "notetypes", "templates")}


@pytest.fixture
def desk(new_server, new_account):
    """A device of another server, as AnkiWeb would be."""
    device = new_account(new_server("old:secret"), "old", "secret").device("desk")
    device.add_notes(200, "übung 日本")
    for number in range(40):
        put(device, f"bild {number} ü.jpg", random.Random(number).randbytes(number * 1000 + 1))
    put(device, "text.svg", b"<svg>" * 50_000)
    return device


@pytest.fixture
def server(new_server):
    return new_server("anna:secret")


def export(device, path, legacy, with_media=True):
    device.col.export_collection_package(out_path=str(path), include_media=with_media, legacy=legacy)
    device.col.reopen()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_package_of_the_real_client_is_there_for_every_device(desk, server, new_account, tmp_path, legacy):
    export(desk, tmp_path / "all.colpkg", legacy)
    assert "another ankipi is running" in refused(server, "import", str(tmp_path / "all.colpkg"), "anna")
    server.stop()
    said = done(server, "import", str(tmp_path / "all.colpkg"), "anna")
    assert "200 notes, 200 cards, 41 media files" in said, said
    assert done(server, "check", "--deep").endswith("in order\n")
    server.start()
    account = new_account(server, "anna", "secret")
    phone, tablet = account.device_in_sync("phone"), account.device_in_sync("tablet")
    assert_same(rows(phone.col), rows(desk.col), DIFFERS, "phone / the device that exported")
    for device in (phone, tablet):
        sync_media(device)
        assert held(device) == held(desk)
    phone.add_note("goes on")
    account.settle(phone, tablet)


def test_what_was_there_before_is_kept_and_devices_are_asked(desk, server, new_account, tmp_path):
    account = new_account(server, "anna", "secret")
    phone, tablet = account.two_devices("before")
    put(phone, "of the phone.jpg", b"phone")
    put(phone, "text.svg", b"another")
    sync_media(phone)
    export(desk, tmp_path / "all.colpkg", legacy=False)
    server.stop()
    done(server, "import", str(tmp_path / "all.colpkg"), "anna")
    server.start()
    for device in (phone, tablet):
        assert device.try_sync() == FULL_SYNC
        device.download()
        sync_media(device)
    assert_same(rows(phone.col), rows(desk.col), DIFFERS, "phone / desk")
    assert held(phone) == held(tablet) == held(desk) | {"of the phone.jpg": held(phone)["of the phone.jpg"]}
    (backup,) = [line for line in done(server, "backup", "list", "anna").splitlines() if "an import replaced it" in line]
    assert backup.split()[4] == "1"
    done(server, "restore", "anna", backup.split()[1])
    assert phone.try_sync() == FULL_SYNC
    phone.download()
    assert phone.fronts() == ["before"]


def test_what_ankipi_exported_it_imports_and_a_new_user_is_told_of_the_account(desk, server, tmp_path):
    old = desk.url
    desk.upload()
    sync_media(desk)
    first = next(running for running in type(server).running if running.url == old)
    done(first, "export", "old", str(tmp_path / "old.colpkg"))
    server.stop()
    said = done(server, "import", str(tmp_path / "old.colpkg"), "bob")
    assert "ankipi user add bob" in said and "41 media files" in said
    assert done(server, "check", "bob", "--deep").endswith("in order\n")


def broken(tmp_path, name, change):
    """A copy of the package with some entries changed: by name, new contents or None."""
    path = tmp_path / f"{name}.colpkg"
    with zipfile.ZipFile(tmp_path / "all.colpkg") as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as copy:
        for entry in whole.namelist():
            contents = change.get(entry, whole.read(entry))
            if contents is not None:
                copy.writestr(entry, contents)
    return str(path)


def test_what_is_damaged_is_refused_or_named_and_nothing_is_lost(desk, server, new_account, tmp_path):
    account = new_account(server, "anna", "secret")
    account.two_devices("before")
    export(desk, tmp_path / "all.colpkg", legacy=True)
    server.stop()

    def tree():
        return {path: path.read_bytes() for path in server.base.rglob("*") if path.is_file() and not path.name.startswith(".ankipi")}

    before = tree()
    (tmp_path / "no.colpkg").write_text("no zip")
    (tmp_path / "cut.colpkg").write_bytes((tmp_path / "all.colpkg").read_bytes()[:-1000])
    flipped = bytearray((tmp_path / "all.colpkg").read_bytes())
    # One bit may change nothing: deflate may copy the same bytes from another place.
    flipped[5000:5032] = bytes(byte ^ 0xFF for byte in flipped[5000:5032])
    (tmp_path / "flipped.colpkg").write_bytes(flipped)
    for path, words in [(tmp_path / "no.colpkg", "no zip"), (tmp_path / "cut.colpkg", "cut off"), (tmp_path / "flipped.colpkg", ""),
                        (broken(tmp_path, "empty", {name: None for name in ("collection.anki2", "collection.anki21", "collection.anki21b")}), "no collection"),
                        (broken(tmp_path, "junk", {"collection.anki21": b"x" * 9999, "collection.anki2": b"x" * 9999}), "not an Anki collection"),
                        (broken(tmp_path, "list", {"media": b"{"}), "list of media")]:
        said = refused(server, "import", str(path), "anna")
        assert words in said, said
        assert {path: contents for path, contents in tree().items() if "/media" not in str(path)} == \
               {path: contents for path, contents in before.items() if "/media" not in str(path)}, said
    refused(server, "import", str(tmp_path / "all.colpkg"), status=2)
    refused(server, "import", str(tmp_path / "all.colpkg"), "../up")

    # Media that cannot be taken are named; all others are.
    with zipfile.ZipFile(tmp_path / "all.colpkg") as whole:
        names = json.loads(whole.read("media"))
    gone = next(number for number, name in names.items() if name == "text.svg")
    names["900"], names["901"] = "../../users", "missing.jpg"
    path = broken(tmp_path, "some", {gone: None, "media": json.dumps(names).encode()})
    with zipfile.ZipFile(path, "a") as copy:
        copy.writestr("900", "evil")
    said = refused(server, "import", path, "anna")
    assert "text.svg" in said and "users" in said and "missing.jpg" in said
    assert not (server.base / "users").exists()
    assert done(server, "check", "--deep").endswith("in order\n")
    assert len(list((server.base / "anna/media").iterdir())) == 40
    with sqlite3.connect(server.base / "anna/collection.anki2") as db:
        assert db.execute("select count() from notes").fetchone() == (200,)
    assert os.listdir(server.base / "anna/backups") == ["import-00001.anki2"]


def test_a_file_whose_place_in_the_package_is_damaged_is_named_and_the_others_are_taken(desk, server, tmp_path):
    package = tmp_path / "all.colpkg"
    export(desk, package, legacy=False)
    with zipfile.ZipFile(package) as whole:
        at = whole.getinfo("7").header_offset
    spoiled = bytearray(package.read_bytes())
    spoiled[at:at + 4] = b"????"
    package.write_bytes(spoiled)
    server.stop()
    ended = run(server, "import", str(package), "anna")
    assert ended.returncode == 1 and "200 notes, 200 cards, 40 media files" in ended.stdout, ended
    assert ended.stderr.count("left out") == 1 and "it is damaged" in ended.stderr, ended
