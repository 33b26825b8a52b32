"""`ankipi status`: what an owner wants to know over ssh."""

import json
import re

from commands import done, run
from server import Server, command, phc
from test_media import put, sync_media


def test_it_tells_of_server_disk_users_and_devices(new_server, new_account):
    server = new_server("anna:" + phc("secret"), "bob:" + phc("geheim"), PASSWORDS_HASHED="1")
    desk, phone = new_account(server, "anna", "secret").two_devices()
    put(desk, "picture.jpg", b"x" * 1234)
    sync_media(desk)
    said = done(server, "status")
    assert re.search(rf"^server   running for \d+ s, [\d.]+ MB of memory, [\d.]+ MB at most, process {server.process.pid}$", said, re.M), said
    assert re.search(rf"^data     {server.base}, \d+ .B free$", said, re.M), said
    anna, bob = said.split("\nanna\n")[1].split("\nbob\n")
    assert "3 notes, 3 cards" in anna and "media        1 file, 1.2 KB" in anna, anna
    assert anna.count("device       last sync 20") == 2 and "26.09.3" in anna, anna
    assert "collection   none yet" in bob, bob
    assert max(map(len, said.splitlines())) < 140
    # `status` leaves no line in the server's log, as it is not a sync.
    assert "status" not in server.log()


def test_a_disk_that_is_nearly_full_is_said_to_refuse_uploads(new_server):
    server = new_server("anna:secret", SYNC_MIN_FREE_MEGS="50000000")
    assert "uploads that would leave less than 52 TB are refused (SYNC_MIN_FREE_MEGS)" in done(server, "status")
    assert "refused" not in done(new_server("anna:secret"), "status")


def test_without_a_server_it_says_so_and_ends_with_1(new_server, new_account):
    server = new_server("anna:secret")
    new_account(server, "anna", "secret").two_devices()
    server.stop()
    files = sorted(server.base.rglob("*"))
    ended = run(server, "status")
    assert ended.returncode == 1 and ended.stdout.startswith("server   not running\n") and "3 notes" in ended.stdout
    assert sorted(server.base.rglob("*")) == files


def test_programs_get_the_same_as_json(new_server, new_account):
    server = new_server("anna:" + phc("secret"), "bob:" + phc("geheim"), PASSWORDS_HASHED="1")
    new_account(server, "anna", "secret").two_devices()
    told = json.loads(done(server, "status", "--json"))
    assert told["running"] and told["process"]["pid"] == server.process.pid and told["free_bytes"] > 0
    anna, bob = told["users"]
    assert (anna["collection"]["notes"], anna["collection"]["cards"], len(anna["devices"])) == (3, 3, 2), anna
    assert bob["collection"] is None and bob["devices"] == []
    # A fact that cannot be read takes nothing else with it.
    keys = server.base / "anna/keys"
    keys.write_text(keys.read_text() + "no key\n")
    anna = json.loads(done(server, "status", "--json"))["users"][0]
    assert "keys" in anna["devices"]["error"] and anna["collection"]["notes"] == 3


class ByItsOtherName(Server):
    """Packages also install the name of Anki's own server."""

    def command_line(self):
        link = self.base.with_name("anki-sync-server")
        if not link.exists():
            link.symlink_to(command(official=False)[0])
        return [str(link)]


def test_the_process_is_known_by_its_other_name(tmp_path):
    server = ByItsOtherName(tmp_path / "base", ["anna:secret"])
    try:
        assert f"process {server.process.pid}" in done(server, "status")
        del server.env["SYNC_USER1"]
        assert "anna" in done(server, "user", "list")
    finally:
        server.stop()
