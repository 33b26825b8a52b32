"""A data folder that was copied as root, for a server that is not root: it is told whose it is and what to type, and never called
damaged."""

import os
import pwd
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

import pytest
from anki.errors import BackendError

from commands import run
from junk import log_in
from server import Server, command, phc
from test_import import Old
from test_media import folder, put, sync_media

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")

NOBODY = pwd.getpwnam("nobody")


class OfNobody(Server):
    """A server that runs as the user nobody."""

    def command_line(self):
        who = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups", "--no-new-privs"]
        return [*who, str(self.base.parent / "ankipi")]


@pytest.fixture
def server():
    root = Path(tempfile.mkdtemp(prefix="ankipi-owner-"))
    root.chmod(0o755)
    shutil.copy(command(official=False)[0], root / "ankipi")
    base = root / "base"
    base.mkdir()
    os.chown(base, NOBODY.pw_uid, NOBODY.pw_gid)
    server = OfNobody(base, [f"anna:{phc('secret')}", f"bob:{phc('geheim')}"], PASSWORDS_HASHED="1")
    yield server
    server.stop()
    shutil.rmtree(root)


@pytest.fixture
def synced(server, new_account):
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices()
    put(desk, "one.jpg", b"1")
    sync_media(desk)
    sync_media(phone)
    desk.sync()
    phone.sync()
    server.stop()
    return server, account, desk, phone


def give(path: Path, uid: int, mode: int = 0) -> None:
    """Gives a path, and what is below it, to a user."""
    for each in [path, *path.rglob("*")]:
        os.chown(each, uid, uid)
        if mode and each.is_file():
            each.chmod(mode)


def remedy(said: str, base: Path) -> str:
    """The command that a text tells, as typed by the owner."""
    [line] = {line for line in said.splitlines() if "Type this as root: " in line and str(base) in line}
    typed = line.split("Type this as root: ", 1)[1]
    said = said.replace("Nothing is damaged", "")
    assert f"{base}" in typed and "damaged" not in said, said
    return typed


@pytest.mark.parametrize("what, mode", [("anna", 0), ("anna/collection.anki2", 0), ("anna/collection.anki2", 0o444), ("anna/keys", 0)])
def test_a_wrong_owner_is_named_by_all_and_the_told_command_helps(synced, what, mode):
    server, account, desk, phone = synced
    give(server.base / what, NOBODY.pw_uid if mode else 0, mode)
    server.start()
    started = server.log()
    typed = remedy(started, server.base)
    assert str(server.base / what) in started and ("chmod" if mode else "chown -R nobody: ") in typed, started
    checked, told = run(server, "check"), run(server, "status")
    assert checked.returncode == 1 and remedy(checked.stdout, server.base) == typed, checked
    assert "bob: in order" in checked.stdout
    assert remedy(told.stdout, server.base) == typed, told
    desk.add_note("while it was not the server's")
    with pytest.raises(BackendError, match="belong to another user of its machine.* Nothing is damaged"):
        desk.try_sync()
    server.mark_log()
    doctor = run(server, "doctor", server.url)
    assert typed in " ".join(doctor.stdout.split()), doctor
    with pytest.raises(BackendError):
        phone.try_sync()
    assert typed in server.log()
    subprocess.run(typed, shell=True, check=True)
    server.power_cut()
    account.settle(desk, phone)
    assert "Type this" not in server.log()[len(started):].split("listens on")[-1]
    assert "Type this" not in run(server, "check").stdout + run(server, "status").stdout


@pytest.mark.parametrize("what, mode", [("media", 0), ("media.db", 0), ("media/one.jpg", 0o600)])
def test_media_of_another_owner_keep_no_card_and_are_not_forgotten(synced, what, mode):
    server, account, desk, phone = synced
    give(server.base / "anna" / what, 0, mode)
    server.start()
    typed = remedy(server.log(), server.base)
    assert remedy(run(server, "check").stdout, server.base) == typed
    desk.add_note("with media that are not the server's")
    out = desk.col.sync_collection(desk.auth, sync_media=False)
    assert out.required == out.NO_CHANGES and "Nothing is damaged" in out.server_message, out
    fresh = account.device_in_sync("fresh")
    if mode:
        sync_media(fresh)  # gets all that the server may open
        assert not (folder(fresh) / "one.jpg").exists() and typed in server.log()
        assert "closed" not in run(server, "status").stdout
    else:
        put(desk, "two.jpg", b"2")
        with pytest.raises(Exception):
            sync_media(desk)
    server.stop()
    subprocess.run(typed, shell=True, check=True)
    server.start()
    for device in (desk, phone, fresh, desk):
        sync_media(device)
    assert (folder(fresh) / "one.jpg").read_bytes() == b"1"
    assert not (server.base / "anna/damaged").exists()


def test_a_file_that_a_killed_server_had_just_got_is_not_forgotten_either(synced):
    server, account, desk, phone = synced
    server.start()
    put(desk, "late.jpg", b"late")
    sync_media(desk)
    server.process.kill()
    server.process.wait()
    Server.running.remove(server)
    give(server.base / "anna/media/late.jpg", 0, 0o600)
    server.start()
    typed = remedy(server.log(), server.base)
    server.stop()
    assert not (server.base / "anna/damaged").exists()
    subprocess.run(typed, shell=True, check=True)
    server.start()
    sync_media(phone)
    assert (folder(phone) / "late.jpg").read_bytes() == b"late"


def as_nobody(server, *words: str) -> subprocess.CompletedProcess:
    command_line = [*server.command_line(), *words, "--base", str(server.base)]
    return subprocess.run(command_line, env=server.env, capture_output=True, text=True, timeout=60)


def test_who_guesses_too_often_makes_the_server_look_at_nobody_s_files(synced):
    server, *_ = synced
    give(server.base / "anna", 0)
    server.start()
    server.mark_log()
    statuses = {log_in(server, "bob", "guess") for _ in range(8)}
    assert statuses == {403, 503}
    assert ": must wait " in server.log() and "Type this" not in server.log(), server.log()


def test_a_package_lacks_only_what_cannot_be_read_and_says_so(synced):
    server, account, desk, phone = synced
    base, to = server.base, server.base.parent / "stick"
    put(desk, "two.jpg", b"2")
    server.start()
    sync_media(desk)
    to.mkdir(mode=0o777)
    give(to, NOBODY.pw_uid)
    older = to / "anna-20010101T000000Z.colpkg"
    older.write_text("the last one with all media")
    give(base / "anna/media/one.jpg", 0, 0o600)
    for words in (["export", "anna", str(to / "new.colpkg")], ["backup", "make", "anna", "--keep", "1", "--to", str(to)]):
        said = as_nobody(server, *words)
        assert said.returncode == 1 and "lacks 1 media file" in said.stderr, said
        assert f"left out {base}/anna/media/one.jpg: Permission denied" in said.stderr, said
        typed = remedy(said.stderr, base)
    packages = sorted(to.glob("*.colpkg"))
    assert older in packages and len(packages) == 3, packages
    for package in packages[1:]:
        with zipfile.ZipFile(package) as zipped:
            assert zipped.testzip() is None and zipped.namelist() == ["meta", "collection.anki21b", "0", "media"], package
    give(base / "anna/media", 0, 0o600)
    (base / "anna/media").chmod(0o700)
    said = as_nobody(server, "export", "anna", str(to / "none.colpkg"))
    assert said.returncode == 1 and remedy(said.stderr, base) == typed and not list(to.glob("none*")), said
    subprocess.run(typed, shell=True, check=True)
    packages[1].unlink()  # it may have the name of this second
    done = as_nobody(server, "backup", "make", "anna", "--keep", "1", "--to", str(to))
    assert done.returncode == 0 and "with 2 media files" in done.stdout and not older.exists(), done


def test_an_import_lacks_only_what_cannot_be_read_and_says_so(synced):
    server, account, desk, phone = synced
    put(desk, "two.jpg", b"2")
    root = server.base.parent
    old = Old(root / "ankisyncd")
    old.add("carl", "secret", server.base / "anna/collection.anki2", folder(desk), last_usn=2)
    for path in [old.root, *old.root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (old.root / "collections/carl/collection.media/one.jpg").chmod(0o600)
    said = as_nobody(server, "import", str(old.root))
    assert said.returncode == 1 and "1 media file (1 left out)" in said.stdout, said
    assert "collection.media/one.jpg is left out: it cannot be read: Permission denied" in said.stderr, said
    assert [path.name for path in (server.base / "carl/media").iterdir()] == ["two.jpg"]
    checked = as_nobody(server, "check", "carl", "--deep")
    assert checked.stdout == "carl: in order\n", checked


def test_a_folder_that_is_root_s_is_named_at_the_start(synced):
    server, account, desk, phone = synced
    give(server.base, 0)
    with pytest.raises(AssertionError) as ended:
        server.start()
    subprocess.run(remedy(str(ended.value), server.base), shell=True, check=True)
    server.start()
    account.settle(desk, phone)


def test_without_a_server_the_owner_of_the_folder_is_taken_for_its_user(synced):
    server = synced[0]
    give(server.base / "anna", 0)
    checked = run(server, "check")
    assert checked.returncode == 1 and "a server that runs as the user nobody, who owns the data folder, cannot" in checked.stdout, checked
    subprocess.run(remedy(checked.stdout, server.base), shell=True, check=True)
    assert run(server, "check").returncode == 0


def test_who_forgets_sudo_is_told_to_type_it_and_nothing_that_is_untrue(synced):
    """The folder of a package belongs to the service. What its owner may not read is neither damaged nor missing, and must not be
    given to who has forgotten sudo."""
    server, account, desk, phone = synced
    server.base.chmod(0o700)
    games = pwd.getpwnam("games")
    stranger = ["setpriv", f"--reuid={games.pw_uid}", f"--regid={games.pw_gid}", "--clear-groups"]
    program = str(server.base.parent / "ankipi")
    for runs in (True, False):
        if runs:
            server.start()
        for words in ("status", "check", "check --fix", "user list", "user add new", "user passwd anna", "user remove anna",
                      "device list", "device revoke anna --all", "backup list", "backup make", "restore anna 1",
                      "export anna /tmp/anna.colpkg", "import /nowhere", "init"):
            for base in (str(server.base), str(server.base / "below")) if words == "status" else (str(server.base),):
                said = subprocess.run([*stranger, program, *words.split(), "--base", base], env=server.env, input="secret\n",
                                      capture_output=True, text=True, timeout=60)
                assert said.returncode == 1 and said.stdout == "", (words, said)
                assert f"the user games may not use {base}" in said.stderr and "sudo in front" in said.stderr, (words, said)
                assert "chown" not in said.stderr and said.stderr.count("\n") == 1, (words, said)
        if runs:
            server.stop()
    # What needs no data folder is nobody's.
    for words in ("hash-password", "config"):
        said = subprocess.run([*stranger, program, *words.split()], env=server.env, input="secret\n", capture_output=True, text=True)
        assert said.returncode == 0, said
