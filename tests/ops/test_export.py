"""`ankipi export`: a package that the real client imports in place of what it has."""

import os
import random
import subprocess
import time

import pytest

from commands import done, refused, run
from device import Device
from rows import assert_same, rows
from account import NOT_SYNCED
from server import command
from test_media import held, put, sync_media


@pytest.fixture
def filled(new_server, new_account):
    server = new_server("anna:secret")
    desk = new_account(server, "anna", "secret").device("desk")
    desk.add_notes(300, "übung 日本")
    for number in range(40):
        put(desk, f"bild {number} ü.jpg", random.Random(number).randbytes(number * 1000 + 1))
    put(desk, "text.svg", b"<svg>" * 50_000)
    desk.upload()
    sync_media(desk)
    return server, desk


def imported(package, home) -> Device:
    """A client whose collection is what the package holds."""
    device = Device(home, "", "", "")
    device.add_note("to be replaced")
    paths = {"col_path": device.col.path, "media_folder": device.col.media.dir(), "media_db": str(home / "collection.media.db2")}
    device.col.close()
    device.col._backend.import_collection_package(backup_path=str(package), **paths)
    device.col.reopen()
    return device


def test_the_real_client_imports_it(filled, tmp_path):
    server, desk = filled
    package = tmp_path / "anna.colpkg"
    said = done(server, "export", "anna", str(package))
    assert "41 media files" in said
    assert not list(tmp_path.glob("*.new"))
    copy = imported(package, tmp_path / "copy")
    assert_same(rows(copy.col), rows(desk.col), NOT_SYNCED | {("col", "scm")}, "package / desk")
    assert held(copy) == held(desk)
    copy.close()
    # The server's own files are as they were, and syncing goes on.
    desk.add_note("afterwards")
    desk.sync()
    server.stop()
    assert not list(server.base.rglob("*-wal"))
    server.start()
    assert "exists already" in refused(server, "export", "anna", str(package))
    refused(server, "export", "anna", str(tmp_path / "anna.zip"), status=2)
    assert "nothing of a user" in refused(server, "export", "bob", str(tmp_path / "bob.colpkg"))


def test_it_is_whole_while_the_server_is_stopped_and_leaves_nothing(filled, tmp_path):
    server, desk = filled
    server.stop()
    before = sorted(path.name for path in server.base.rglob("*"))
    done(server, "export", "anna", str(tmp_path / "anna.colpkg"))
    assert sorted(path.name for path in server.base.rglob("*")) == before
    copy = imported(tmp_path / "anna.colpkg", tmp_path / "copy")
    assert copy.count("notes") == 300
    copy.close()
    server.start()


def test_a_full_disk_ends_it_without_a_trace(filled, tmp_path):
    server, _ = filled
    script = f"ulimit -f 100; exec {command(official=False)[0]} export anna {tmp_path}/anna.colpkg"
    ended = subprocess.run(["bash", "-c", f"trap '' XFSZ; {script}"], env=server.env, capture_output=True, text=True)
    assert ended.returncode == 1 and "anna.colpkg" in ended.stderr and "connection" not in ended.stderr, ended.stderr
    assert not list(tmp_path.glob("anna*"))


def test_what_a_link_leads_to_is_in_no_package(filled, tmp_path):
    server, _ = filled
    (tmp_path / "secret").write_text("of the owner alone")
    (server.base / "anna/media/link.jpg").symlink_to(tmp_path / "secret")
    os.mkfifo(server.base / "anna/media/pipe.jpg")
    ended = run(server, "export", "anna", str(tmp_path / "anna.colpkg"))
    assert ended.returncode == 1 and "41 media files" in ended.stdout and "lacks 1 media file" in ended.stderr, ended
    assert "media/link.jpg: it is a link" in ended.stderr and b"of the owner alone" not in (tmp_path / "anna.colpkg").read_bytes()


def test_what_an_interrupted_command_left_is_named_or_deleted(filled, tmp_path):
    server, _ = filled
    (tmp_path / "anna.colpkg.new").write_text("half")
    assert "anna.colpkg.new exists already: another command writes it, or was" in refused(server, "export", "anna", str(tmp_path / "anna.colpkg"))
    to = tmp_path / "stick"
    to.mkdir()
    old, young, other = (to / f"{name}.colpkg.new" for name in ("anna-20240101T000000Z", "anna-20240101T000001Z", "anna-notes"))
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (1, time.time() - 13 * 3600))
    done(server, "backup", "make", "--to", str(to))
    assert sorted(path.name for path in to.glob("*.new")) == [young.name, other.name]


@pytest.mark.parametrize("name", ["", "media", "media.db", "collection.anki2"])
def test_what_the_server_does_not_follow_is_not_in_order_and_in_no_package(filled, tmp_path, name):
    server, _ = filled
    server.stop()
    place = server.base / "anna" / name
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    checked = run(server, "check", "anna")
    assert checked.returncode == 1 and f"{place} is a symbolic link" in checked.stdout and "damaged" not in checked.stdout, checked
    if name not in ("", "media.db"):
        assert f"{place} is a symbolic link" in refused(server, "export", "anna", str(tmp_path / "anna.colpkg"))
    place.unlink()
    (tmp_path / "elsewhere").rename(place)
    assert "anna: in order" in done(server, "check", "anna")
