"""Everything around the sync itself: paths, the health page, and a wrong clock."""

import json
import time

import pytest

from server import REFERENCE
from wire import request


def test_health_answers(shared_server):
    assert shared_server.get("/health")[0] == 200


@pytest.mark.ours
def test_a_browser_is_told_what_this_is(shared_server):
    status, page = shared_server.get("/")
    assert status == 200 and b"nki" in page


@pytest.mark.parametrize("path", ["/nothing", "/sync", "/favicon.ico", "/../../etc/passwd", "/sync/meta/x", "/health/x"])
def test_other_paths_are_not_found(shared_server, path):
    assert shared_server.get(path)[0] in (400, 404)


@pytest.mark.parametrize("verb", ["GET", "PUT", "DELETE"])
def test_methods_must_be_posted(shared_server, verb):
    assert shared_server.get("/sync/meta", verb)[0] == 405


@pytest.mark.parametrize("method", ["nothing", "Meta", "hostkey"])
def test_unknown_methods_are_refused(account, method):
    desk = account.device("desk")
    desk.login()
    assert request(account, method, {}, desk.auth.hkey).status in (400, 404)


@pytest.mark.ours
@pytest.mark.parametrize("path", ["//", "///", "/.//"])
def test_a_url_with_too_many_slashes_works(account, path):
    desk, phone = account.device("desk"), account.device("phone")
    desk.use(account.server.url.rstrip("/") + path)
    desk.add_note("one")
    desk.upload()
    phone.download()
    account.settle(desk, phone)


@pytest.mark.ours
@pytest.mark.parametrize("path", ["//sync//meta/", "/sync/meta/", "//sync/meta"])
def test_slashes_are_collapsed(account, path):
    desk = account.device("desk")
    desk.login()
    ask = {"v": 11, "cv": "anki,26.09.3 (00000000),linux"}
    assert request(account, path, ask, desk.auth.hkey).status == 200


@pytest.mark.ours
def test_a_path_in_front_of_everything(new_server, new_account):
    server = new_server("anna:secret", SYNC_BASE_PATH="/anki")
    account = new_account(server, "anna", "secret")
    server.url += "anki/"
    account.settle(*account.two_devices())


@pytest.mark.parametrize("version, status", [(7, 501), (8, 200), (10, 200), (11, 200), (12, 501)])
def test_the_versions_of_the_protocol(account, version, status):
    desk = account.device("desk")
    desk.login()
    assert request(account, "meta", {"v": version, "cv": "anki,26.09.3 (00000000),linux"}, desk.auth.hkey).status == status


def test_meta_tells_the_time_in_seconds(account):
    """A device whose clock is five minutes off refuses to sync, so the unit and the zone matter."""
    desk, _ = account.two_devices()
    meta = json.loads(request(account, "meta", {"v": 11, "cv": "anki,26.09.3 (00000000),linux"}, desk.auth.hkey).text)
    assert abs(meta["ts"] - time.time()) < 60
    assert {key: meta[key] for key in ("msg", "cont", "hostNum", "empty", "media_usn")} == {
        "msg": "", "cont": True, "hostNum": 0, "empty": False, "media_usn": 0}
    assert [meta["mod"], meta["scm"]] == desk.col.db.first("select mod, scm from col") or REFERENCE  # a download stamps


def test_a_session_is_needed(account):
    desk, _ = account.two_devices()
    for method in ["applyGraves", "applyChanges", "chunk", "applyChunk", "sanityCheck2", "finish"]:
        body = {"chunk": {"cards": [], "notes": [], "decks": []}} if method == "applyGraves" else {}
        status = request(account, method, body, desk.auth.hkey).status
        assert status in (400, 409), method
    assert request(account, "abort", {}, desk.auth.hkey).text == "null"


def test_a_device_that_is_not_logged_in_gets_nothing(account):
    account.two_devices()
    for method in ["meta", "start", "chunk", "finish", "abort", "upload", "download"]:
        assert request(account, method, {}, "").status == 403, method
