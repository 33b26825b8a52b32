"""Every kind of damage to every file of a user's folder: the server starts, others are served, the user hears what to do, and
nothing good is lost. Prints a table (pytest -s).

Each damage has a user of its own, on one server. All have the same folder and the same device, made once.
"""

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from anki.collection import Collection
from anki.errors import BackendError, NetworkError, SyncError

from device import FULL_DOWNLOAD, FULL_SYNC, FULL_UPLOAD, NO_CHANGES, Device
from server import Server, command, phc
from shelf import DAMAGES, PRESSES, ankipi, press
from test_media import held, put, sync_media

pytestmark = [pytest.mark.ours, pytest.mark.slow]

PASSWORD = "secret"
ASKED = {NO_CHANGES: "syncs", FULL_SYNC: "is asked which side to keep", FULL_DOWNLOAD: "is asked to download", FULL_UPLOAD: "is asked to upload"}
FRONTS = ["newest", "one", "two"]


def junk(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def another_users(name: str):
    def damage(path: Path) -> None:
        shutil.copy(path.parents[len(Path(name).parts) - 1].parent / "bob" / name, path)
    return damage


def gone(path: Path) -> None:
    shutil.rmtree(path)


def file_in_its_place(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


def flipped(page_part: float):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = int(len(data) * page_part)
        data[at:at + 64] = bytes(64)
        path.write_bytes(data)
    return damage


def unreadable(path: Path) -> None:
    if not path.exists():
        path.write_bytes(b"")
    path.chmod(0)


def readable(path: Path) -> None:
    path.chmod(0o700 if path.is_dir() else 0o600)


# File, or folder, with what is done to it.
WHOLE = {"missing": DAMAGES["missing"], "empty": DAMAGES["empty"], "cut": DAMAGES["cut"], "flipped bit": DAMAGES["flipped bit"],
         "folder in its place": DAMAGES["folder in its place"], "unreadable": unreadable}
ODD = {"junk": junk, "empty": nothing, "folder in its place": folder, "unreadable": unreadable}
CASES = {
    "collection.anki2": WHOLE | {"bytes lost at 1/8": flipped(0.125), "header lost": flipped(0), "another user's": another_users("collection.anki2")},
    "collection.anki2-wal": ODD,
    "collection.anki2-journal": ODD,
    "media.db": WHOLE | {"header lost": flipped(0), "another user's": another_users("media.db")},
    "media.db-wal": ODD,
    "media.pending": ODD,
    "media/0.jpg": WHOLE | {"another user's": another_users("media/0.jpg")},
    "media": {"missing": gone, "file in its place": file_in_its_place, "unreadable": unreadable},
    "keys": ODD,
    "backups/collection-00001.anki2": WHOLE | {"another user's": another_users("backups/collection-00001.anki2")},
    "backups": {"missing": gone, "file in its place": file_in_its_place, "unreadable": unreadable},
    "": {"missing": gone, "unreadable": unreadable},
}
DAMAGED: list = [(name, kind, damage) for name, kinds in CASES.items() for kind, damage in kinds.items()]


@pytest.fixture
def shelf(tmp_path):
    """The server with all users, stopped, and the folder of the device that all users have."""
    hashed = phc(PASSWORD)
    names = ["anna", "bob", *(f"u{n}" for n in range(len(DAMAGED)))]
    server = Server(tmp_path / "base", [f"{name}:{hashed}" for name in names], obeys_modes=True, PASSWORDS_HASHED="1")
    devices = tmp_path / "devices"
    for name in ("anna", "bob"):
        desk = Device(devices / name, server.url, name, PASSWORD)
        desk.add_note("one")
        desk.upload()
        desk.add_note("two")
        desk.col.mod_schema(check=False)
        desk.upload()  # which makes a backup of the first
        for n in range(3):
            put(desk, f"{n}.jpg", f"{n} of {name}".encode())
        desk.sync()
        sync_media(desk)
        desk.close()
    server.stop()
    for n in range(len(DAMAGED)):
        shutil.rmtree(server.base / f"u{n}", ignore_errors=True)
        shutil.copytree(server.base / "anna", server.base / f"u{n}")
    yield server, devices / "anna"
    if server in Server.running:
        server.stop()


def device_of(server: Server, template: Path, name: str, at: Path) -> Device:
    """A device that is in sync with what the user's folder held."""
    device = Device(at / name, server.url, name, PASSWORD)
    path = Path(device.col.path)
    device.close()
    shutil.rmtree(path.parent)
    shutil.copytree(template, path.parent)
    device.col = Collection(str(path))
    return device


def try_sync(device: Device) -> tuple[int | None, str]:
    try:
        asked = device.try_sync()
        return asked, ASKED[asked]
    except (SyncError, NetworkError, BackendError) as err:
        return None, str(err)


def try_until_served(device: Device) -> tuple[int | None, str]:
    """The server looks again at what it could not read, at most once a second."""
    deadline = time.monotonic() + 10
    while True:
        asked, heard = try_sync(device)
        if asked is not None or time.monotonic() > deadline:
            return asked, heard
        time.sleep(0.2)


def story(server: Server, template: Path, number: int, at: Path) -> tuple[str, list[str]]:
    """What the user hears, and what is wrong with it."""
    user = f"u{number}"
    device = device_of(server, template, user, at)
    device.add_note("newest")
    wrong = []
    asked, heard = try_sync(device)
    if asked is None and "try again" in heard.lower():
        asked, heard = try_sync(device)
    name, kind, _ = DAMAGED[number]
    if kind == "unreadable":
        if asked not in (None, NO_CHANGES):
            wrong.append(f"what cannot be read counts as lost: {heard}")
        path = server.base / user / name
        # A login is not told apart from those of other users whose files cannot be read: one command puts all right.
        if asked is None and name not in ("keys", "") and not re.search(rf"{server.base / user}\b|\[request\] \S+ {user} .* 500 ", server.log()):
            wrong.append("the log does not say whose it is")
        if asked is None and "Type this" not in server.log():
            wrong.append("the log does not say what to type")
        # The owner does.
        if path.exists():
            readable(path)
        if asked is None:
            asked, then = try_until_served(device)
            heard += f" THEN {then}"
            if asked != NO_CHANGES:
                wrong.append("it is not as it was")
    if asked is None and "damaged" in heard:
        # The owner does what the log says.
        path = server.base / user / "collection.anki2"
        path.rename(path.with_name("put-away"))
        asked, then = try_sync(device)
        heard += f" THEN {then}"
    keys = server.base / user / "keys"
    if asked is None and f'the account "{user}" is closed' in server.log() and str(keys) in server.log():
        # The owner does what the log says: all devices log in again.
        if keys.is_dir():
            keys.rmdir()
        ankipi(server, "device", "revoke", user, "--all")
        device.auth = None
        asked, then = try_sync(device)
        heard += f" THEN, as the log says, {then}"
    if asked in (FULL_SYNC, FULL_UPLOAD):
        device.upload()
    elif asked != NO_CHANGES:
        wrong.append(f"does not hear what to do: {heard}")
    fresh = Device(at / f"{user}-fresh", server.url, user, PASSWORD)
    try:
        fresh.download()
        # A new device is what notices.
        said = press(fresh) + press(device, PRESSES)
        heard += "".join(f"; media: {text}" for text in dict.fromkeys(said))
        sync_media(fresh)
        if fresh.fronts() != FRONTS:
            wrong.append(f"notes {fresh.fronts()}")
        if held(fresh) != held(device) or len(held(device)) != 3:
            wrong.append(f"media {sorted(held(fresh))} and {sorted(held(device))}")
    except (SyncError, NetworkError, BackendError) as err:
        wrong.append(f"a new device: {err}")
    fresh.close()
    device.close()
    return heard, wrong


@pytest.mark.parametrize("runs", [False, True], ids=["while it is stopped", "while it runs"])
def test_every_damage_to_every_file(shelf, tmp_path, runs):
    server, template = shelf
    if runs:
        server.start()
    for number, (name, _, damage) in enumerate(DAMAGED):
        damage(server.base / f"u{number}" / name)
    if not runs:
        server.start()
    # Others are served.
    bob = Device(tmp_path / "bob-too", server.url, "bob", PASSWORD)
    bob.download()
    assert bob.fronts() == ["one", "two"]
    bob.add_note("three")
    bob.sync()
    bob.close()
    results: dict[int, tuple[str, list[str]]] = {}

    def work(first: int) -> None:
        for number in range(first, len(DAMAGED), 3):
            try:
                results[number] = story(server, template, number, tmp_path / "users")
            except BaseException as err:
                results[number] = ("", [repr(err)])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.process.poll() is None
    print(f"\n{'file':32} {'damage':22} the user")
    failures = []
    for number, (name, kind, _) in enumerate(DAMAGED):
        heard, wrong = results[number]
        print(f"{name or 'the folder':32} {kind:22} {heard}{' !! ' + '; '.join(wrong) if wrong else ''}")
        failures += [f"{name or 'the folder'}, {kind}: {fault}" for fault in wrong]
    assert not failures, "\n".join(failures)
    assert ankipi(server, "status").returncode == 0


def line_lost(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


USERS = WHOLE | {"junk": junk, "line lost": line_lost}


def set_password(server: Server, name: str) -> None:
    """What the owner does who reads in the log that an account is gone or cannot be read."""
    for what in ("passwd", "add"):
        done = subprocess.run([*command(), "user", what, name], input=f"{PASSWORD}\n", env=server.env, capture_output=True, text=True)
        if done.returncode == 0:
            return
    raise AssertionError(done.stderr)


@pytest.mark.parametrize("runs", [False, True], ids=["while it is stopped", "while it runs"])
def test_every_damage_to_the_users(tmp_path, runs):
    """Of two users in the file, anna comes first. A third one is of the settings."""
    base = tmp_path / "base"
    base.mkdir()
    users = base / "users"
    good = "".join(f"{name}:{phc(PASSWORD)}\n" for name in ("anna", "carl"))
    users.write_text(good)
    server = Server(base, [f"bob:{PASSWORD}"], obeys_modes=True)
    devices = {name: Device(tmp_path / name, server.url, name, PASSWORD) for name in ("anna", "bob", "carl")}
    for name, device in devices.items():
        device.add_note(name)
        device.upload()
    print(f"\n{'users':32} {'damage':22} anna")
    for kind, damage in USERS.items():
        if not runs:
            server.stop()
        damage(users)
        if not runs:
            server.start()
        bob, anna = devices["bob"], devices["anna"]
        bob.add_note(kind)
        bob.sync()
        anna.add_note(kind)
        asked, heard = try_sync(anna)
        if kind in ("junk", "folder in its place", "missing", "empty", "line lost"):
            assert "try again" in heard, "a device was logged out because of a damaged file"
        if users.is_dir():
            users.rmdir()
        if kind in ("missing", "empty", "line lost"):
            # The log and status say whose devices are locked out, and what helps. A copy of the file does, without a new login.
            for said in (server.log(), ankipi(server, "status").stderr):
                assert re.search('"anna" has no account.*copy of .*/users.*`ankipi user add anna`', said), said
            assert ('"carl" has no account' in ankipi(server, "status").stderr) == (kind != "line lost")
            users.write_text(good)
            asked, then = try_until_served(anna)
            heard += f" THEN, with a copy of the file, {then}"
            assert asked == NO_CHANGES, heard
            server.stop()
            damage(users)
            server.start()
            anna.add_note(f"{kind} again")
            asked, _ = try_sync(anna)
        if kind == "unreadable":
            readable(users)
            assert asked is None, "nobody knows whether anna still has an account"
            asked, then = try_until_served(anna)
            heard += f" THEN {then}"
        elif asked is None:
            set_password(server, "anna")
            anna.auth = None
            asked, then = try_until_served(anna)
            heard += f" THEN, with the password set again, {then}"
        print(f"{'users':32} {kind:22} {heard}")
        assert asked == NO_CHANGES, f"{kind}: {heard}"
        # Carl's line, where that was not lost, is as it was; and so is what the server knows of his device.
        carl = devices["carl"]
        if f"carl:{good.split('carl:')[1]}".encode() not in users.read_bytes():
            set_password(server, "carl")
            carl.auth = None
        assert carl.try_sync() == NO_CHANGES, kind
        # As it was before the next one.
        for name in ("anna", "carl"):
            users.write_text(good)
            devices[name].auth = None
            devices[name].sync()
    for name, device in devices.items():
        fresh = Device(tmp_path / f"{name}-fresh", server.url, name, PASSWORD)
        fresh.download()
        assert fresh.fronts() == device.fronts() and name in fresh.fronts()
        fresh.close()
        device.close()
    server.stop()
