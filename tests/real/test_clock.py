"""A server whose clock is not set, as on a board without a battery: devices are told whose clock is wrong, and nothing is stamped
with such a time."""

import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from device import NO_CHANGES
from server import Server
from shelf import ankipi
from test_media import pair, put, settle
from wire import request

pytestmark = pytest.mark.ours

# Before this year the clock is wrong, as the program knows (`os::clock`).
MINUTES_OF_THIS_VERSION = 1_767_225_600 // 60


class Clock:
    """The server's clock: 1970 plus some minutes, or the real time."""

    def __init__(self, folder: Path):
        self.path, library = folder / "offset", folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self.path)}

    def say(self, secs: float) -> None:
        self.path.write_text(str(int(secs - time.time())))

    def be_right(self) -> None:
        self.path.write_text("0")


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


class Unset(Server):
    """A server that is up when it answers at all: /health says that the clock is not set."""

    def healthy(self) -> bool:
        try:
            return self.get("/health")[0] in (200, 503)
        except OSError:
            return False


@pytest.fixture
def new_unset(tmp_path):
    servers = []

    def start(clock, *users, **env):
        servers.append(Unset(tmp_path / "unset", list(users), **clock.env, **env))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def stored_stamps(server, user):
    """Everything that the server has stored of a user, as text."""
    path = server.base / user / "collection.anki2"
    if not path.exists():
        return []
    with sqlite3.connect(path) as db:
        return list(db.execute("select crt, mod, scm, ls from col").fetchone())


def test_1970_is_the_servers_fault_until_its_clock_is_set(new_unset, new_account, clock):
    clock.say(300)
    server = new_unset(clock)
    subprocess.run([server.command_line()[0], "user", "add", "anna", "--base", server.base], input=b"secret\n", env=server.env, check=True)
    account = new_account(server, "anna", "secret")
    desk = account.device("desk")
    desk.add_note("one")
    desk.login()
    with pytest.raises(Exception, match=r"(?s)sync server.*clock of this machine is not set: it says 1970-01-01 00:0") as refused:
        desk.try_sync()
    assert "your clock" not in str(refused.value).lower()
    status, text = server.get("/health")
    assert (status, b"1970-01-01" in text) == (503, True), (status, text)
    said = subprocess.run([server.command_line()[0], "status", "--base", server.base], env=server.env, capture_output=True, text=True).stdout
    assert "clock    the clock of this machine is not set: it says 1970" in said
    assert "1970" in server.log() and "date -u -s" in server.log()
    keys = (server.base / "anna" / "keys").read_text()
    assert "1970-" not in keys, keys
    # Whoever goes on all the same leaves no such stamp.
    request(account, "download", {}, desk.auth.hkey)
    assert all(stamp == 0 or stamp > 1_700_000_000 for stamp in stored_stamps(server, "anna"))

    clock.be_right()
    desk.upload()
    phone = account.device_in_sync("phone")
    phone.add_note("two")
    account.settle(desk, phone)
    assert server.get("/health")[0] == 200 and "the clock is set now" in server.log()


def test_a_clock_that_falls_back_stops_syncs_and_undoes_none(new_unset, new_account, clock):
    clock.be_right()
    server = new_unset(clock, "anna:secret")
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices()
    before = stored_stamps(server, "anna")
    clock.say(0)
    desk.add_note("while it is 1970")
    with pytest.raises(Exception, match="1970-01-01"):
        desk.try_sync()
    assert stored_stamps(server, "anna") == before
    clock.be_right()
    assert desk.try_sync() == NO_CHANGES
    account.settle(desk, phone)


def test_no_time_is_too_far_ahead_for_the_server(new_unset, new_account, clock):
    """After 2038, where 32-bit seconds end; the client is told by how much the clocks differ."""
    clock.say(4_200_000_000)
    server = new_unset(clock, "anna:secret")
    desk = new_account(server, "anna", "secret").device("desk")
    desk.login()
    with pytest.raises(Exception, match="(?i)clock"):
        desk.try_sync()
    assert server.get("/health")[0] == 200
    clock.be_right()
    desk.add_note("one")
    desk.upload()


def test_an_index_of_media_that_was_lost_gets_numbers_that_no_device_knows(new_unset, new_account, clock):
    """They come from the clock. Devices that know higher ones than those of 1970 would miss changes."""
    clock.be_right()
    server = new_unset(clock, "anna:secret")
    account = new_account(server, "anna", "secret")
    desk, phone = pair(account)
    put(desk, "picture.jpg", b"a picture")
    settle(account, desk, phone)
    server.stop()
    index = server.base / "anna/media.db"
    index.unlink()
    clock.say(0)
    found = ankipi(server, "check", "anna", "--fix")
    with sqlite3.connect(index) as db:
        [[number]] = db.execute("select last_usn from meta")
    assert number >= MINUTES_OF_THIS_VERSION, found
