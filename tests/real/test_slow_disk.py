"""An upload that takes the server long to check, as on an old SD card: the client must neither give up nor be told OK too soon.

The client's timeout is 30 s without a byte. A check can take longer, so the server must send keep-alive bytes.
"""

import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from account import NOT_SYNCED
from rows import assert_same, rows
from wire import request, request_form

CHECK_SECS = 45
TIMER_SECS = 30

pytestmark = [pytest.mark.ours, pytest.mark.slow]


@pytest.fixture
def slow_disk(tmp_path):
    """The environment of a server whose disk is slow."""
    library = tmp_path / "slow_disk.so"
    source = Path(__file__).with_name("slow_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SLOW_DISK_SECS": str(CHECK_SECS)}


def test_a_slow_check_keeps_the_client_waiting(new_server, new_account, slow_disk):
    """Stories at once, as each takes most of a minute: a good file of a real client, a bad one of a scripted one, and a good
    one of an old one."""
    good_one = new_account(new_server("anna:secret", **slow_disk), "anna", "secret")
    bad_one = new_account(new_server("bob:secret", **slow_disk), "bob", "secret")
    old_one = new_account(new_server("carl:secret", **slow_disk), "carl", "secret")
    failures = []

    def tell(story, account):
        try:
            story(account)
        except BaseException as err:
            failures.append(err)

    old_file = new_account(new_server("dora:secret", **slow_disk), "dora", "secret")
    stories = [(good_upload, good_one), (bad_upload, bad_one), (old_upload, old_one), (download_of_an_old_file, old_file)]
    threads = [threading.Thread(target=tell, args=story) for story in stories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def download_of_an_old_file(account):
    """The file is in an old format, as another server may leave it: it is upgraded before it is sent."""
    desk = account.device("desk")
    desk.add_note("one")
    desk.col.close(downgrade=True)
    shutil.copy(desk.col.path, account.server.base / "dora/collection.anki2")
    desk.col.reopen()
    phone = account.device("phone")
    phone.login()
    phone.auth.io_timeout_secs = TIMER_SECS
    began = time.monotonic()
    phone.download()
    assert time.monotonic() - began > CHECK_SECS
    assert phone.fronts() == ["one"]


def good_upload(account):
    desk = account.device("desk")
    desk.add_note("one")
    desk.login()
    desk.auth.io_timeout_secs = TIMER_SECS
    began = time.monotonic()
    desk.upload()
    assert time.monotonic() - began > CHECK_SECS, "the disk was not slow"
    account.settle(desk)


def bad_upload(account):
    desk = account.device("desk")
    desk.login()
    good = request(account, "download", {"_pad": None}, desk.auth.hkey).body
    before = rows(account.device_in_sync("phone").col)
    page = 4096 * (len(good) // 4096 // 2)
    bad = good[:page] + bytes(range(256)) * 16 + good[page + 4096:]
    began = time.monotonic()
    answer = request(account, "upload", bad, desk.auth.hkey)
    assert time.monotonic() - began > CHECK_SECS, "the disk was not slow"
    assert answer.status == 200
    assert max(answer.gaps) < TIMER_SECS, answer.gaps
    assert answer.text != "OK" and len(answer.text) > 10, answer.text
    assert_same(before, rows(account.device_in_sync("laptop").col), NOT_SYNCED, "before / after")


def old_upload(account):
    """AnkiDroid up to 2.9 gives up after 30 s without a byte, later and Python ones after 60 s."""
    desk = account.device("desk")
    desk.login()
    good = request(account, "download", {"_pad": None}, desk.auth.hkey).body
    began = time.monotonic()
    answer = request_form(account, "upload", good, desk.auth.hkey)
    assert time.monotonic() - began > CHECK_SECS, "the disk was not slow"
    assert (answer.status, answer.text) == (200, "OK")
    assert max(answer.gaps) < TIMER_SECS, answer.gaps
