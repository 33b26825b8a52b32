"""A disk that loses and spoils media: what the devices have is what counts, and it comes back by itself."""

import random
from pathlib import Path

import pytest

from shelf import DAMAGES, PRESSES, ankipi, cut, lose, media_of, press, spoil, stored, while_it
from test_media import check, delete, folder, held, pair, put, replace, settle, sync_media

pytestmark = pytest.mark.ours

RUNS = pytest.mark.parametrize("runs", [True, False], ids=["while it runs", "while it is stopped"])


@pytest.fixture
def own_account(new_server, new_account):
    return new_account(new_server("anna:secret"), "anna", "secret")


@RUNS
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_file_keeps_no_device_from_the_others_and_comes_back(own_account, damage, runs):
    account = own_account
    desk, phone = pair(account)
    for n in range(5):
        put(desk, f"{n}.jpg", random.Random(n).randbytes(1000))
    before = settle(account, desk, phone)
    while_it(runs, account.server, lambda: DAMAGES[damage](media_of(account) / "2.jpg"))
    tablet = account.device("tablet")
    sync_media(tablet)  # at the first press, and nothing is said
    assert set(held(tablet)) == {"0.jpg", "1.jpg", "3.jpg", "4.jpg"}
    assert "2.jpg" in account.server.log()
    assert "2.jpg" in ankipi(account.server, "status").stdout
    assert "2.jpg" in ankipi(account.server, "check").stdout
    press(desk, PRESSES)
    fresh = settle(account, desk, phone, tablet)
    assert held(fresh) == held(before)
    assert ankipi(account.server, "check", "--deep").returncode == 0
    assert "2.jpg" not in ankipi(account.server, "status").stdout
    # What was damaged is kept for whoever wants to look at it.
    kept = stored(account) / "damaged" / "2.jpg"
    assert kept.exists() == (damage != "missing")


@pytest.mark.parametrize("spoilt", [[0], [24], [25], [29], [0, 24, 25, 29], list(range(25)), list(range(25, 30)), list(range(30))],
                         ids=lambda spoilt: f"{len(spoilt)} from {spoilt[0]}")
@pytest.mark.parametrize("size", [100, 200_000], ids=["small", "large"])
def test_wherever_in_a_zip_they_are(own_account, spoilt, size):
    account = own_account
    desk, phone = pair(account)
    for n in range(30):
        put(desk, f"{n:02}.jpg", random.Random(n).randbytes(size))
    before = settle(account, desk)
    for n in spoilt:
        spoil(media_of(account) / f"{n:02}.jpg")
    # A zip of nothing would make the client ask without end; the one sync in which there is nothing else to give may fail.
    press(phone, 2)
    assert set(held(phone)) == {f"{n:02}.jpg" for n in range(30) if n not in spoilt}
    assert all(held(before)[name] == sha1 for name, sha1 in held(phone).items())
    press(desk, PRESSES)
    fresh = settle(account, desk, phone)
    assert held(fresh) == held(before)


def test_the_whole_folder_is_lost(own_account):
    account = own_account
    desk, phone = pair(account)
    for n in range(40):
        put(desk, f"{n}.jpg", b"%d" % n)
    before = settle(account, desk, phone)
    for path in media_of(account).iterdir():
        path.unlink()
    press(account.device("tablet"))  # which notices
    press(phone, PRESSES)
    assert held(settle(account, desk, phone)) == held(before)


@RUNS
@pytest.mark.parametrize("damage", [lose, spoil, cut])
def test_what_is_done_meanwhile_goes_on(own_account, damage, runs):
    """Each device adds, replaces and deletes files between the damage and its mending."""
    account = own_account
    desk, phone = pair(account)
    for n in range(6):
        put(desk, f"{n}.jpg", b"first %d" % n)
    settle(account, desk, phone)

    def strike():
        for n in (0, 1, 2):
            damage(media_of(account) / f"{n}.jpg")

    while_it(runs, account.server, strike)
    replace(phone, "0.jpg", b"better")
    delete(phone, "1.jpg", "3.jpg")
    put(desk, "new.jpg", b"new")
    tablet = account.device("tablet")
    for _ in range(PRESSES):
        for device in (tablet, phone, desk):
            press(device)
    fresh = settle(account, desk, phone, tablet)
    assert set(held(fresh)) == {"0.jpg", "2.jpg", "4.jpg", "5.jpg", "new.jpg"}
    assert (folder(desk) / "0.jpg").read_bytes() == b"better"
    assert ankipi(account.server, "check", "--deep").returncode == 0


def test_sending_a_file_again_mends_it(own_account):
    """Also where the index has never noticed that its file was spoilt."""
    account = own_account
    desk, phone = pair(account)
    put(desk, "a.jpg", b"picture")
    sync_media(desk)
    spoil(media_of(account) / "a.jpg")
    put(phone, "a.jpg", b"picture")
    from test_media import upload
    phone.login()
    assert upload(account, phone, "a.jpg", b"picture").status == 200
    assert (media_of(account) / "a.jpg").read_bytes() == b"picture"
    assert check(account, "--deep").returncode == 0


@pytest.mark.parametrize("damage", [lose, spoil, cut])
def test_check_forgets_and_deletes_nothing(own_account, damage):
    account = own_account
    desk, phone = pair(account)
    put(desk, "lost.jpg", b"lost and found")
    put(desk, "kept.jpg", b"kept")
    before = settle(account, desk, phone)
    account.server.stop()
    damage(media_of(account) / "lost.jpg")
    found = check(account, "--deep")
    assert found.returncode == 1 and "lost.jpg" in found.stdout
    fixed = check(account, "--deep", "--fix")
    assert fixed.returncode == 0 and "lost.jpg" in fixed.stdout, fixed.stdout
    account.server.start()
    press(desk, PRESSES)
    press(phone, PRESSES)
    assert held(settle(account, desk, phone)) == held(before)
    assert not folder(desk).with_name("media.trash").exists() or not list(folder(desk).with_name("media.trash").iterdir())


def test_no_record_is_made_of_a_spoilt_file(own_account):
    """An index that is gone is made anew of what devices send, not of what is in the folder."""
    account = own_account
    desk, phone = pair(account)
    for n in range(4):
        put(desk, f"{n}.jpg", b"picture %d" % n)
    before = settle(account, desk, phone)
    account.server.stop()
    (stored(account) / "media.db").unlink()
    spoil(media_of(account) / "0.jpg")
    account.server.start()
    press(phone, PRESSES)
    assert held(settle(account, desk, phone)) == held(before)


@pytest.fixture
def strict_account(new_server, new_account):
    """On a server that obeys modes, also if root runs the tests."""
    return new_account(new_server("anna:secret", obeys_modes=True), "anna", "secret")


def forbid(path: Path) -> None:
    path.chmod(0)


def allow(path: Path) -> None:
    path.chmod(0o600)


@RUNS
@pytest.mark.parametrize("files, number", [(5, 2), (60, 55), (1, 0)], ids=["few files", "many files", "the only file"])
def test_a_file_that_the_server_may_not_open_keeps_no_device_from_the_others(strict_account, files, number, runs):
    account, server = strict_account, strict_account.server
    desk, phone = pair(account)
    for n in range(files):
        put(desk, f"{n}.jpg", random.Random(n).randbytes(1000))
    before = settle(account, desk, phone)
    lost = f"{number}.jpg"
    path = media_of(account) / lost
    while_it(runs, server, lambda: forbid(path))
    tablet = account.device("tablet")
    # With many files it is noticed when the device requests it, which it then does without.
    assert press(tablet, 3) == []
    assert set(held(tablet)) == set(held(before)) - {lost}
    for said in (server.log(), ankipi(server, "status").stdout, ankipi(server, "check").stdout):
        [line] = {line.partition("Type this as root: ")[2] for line in said.splitlines() if str(path) in line and "Type this" in line}
        assert line == f"chmod -R u+rwX {server.base}", said
    # The other devices are not asked for it, and all go on.
    put(tablet, "new.jpg", b"new")
    assert press(tablet) + press(desk, PRESSES) + press(phone, PRESSES) + press(tablet, PRESSES) == []
    assert "new.jpg" in held(phone) and lost in held(phone) and lost not in held(tablet)
    assert path.stat().st_mode & 0o777 == 0 and not (stored(account) / "damaged").exists()
    while_it(not runs, server, lambda: allow(path))
    assert press(tablet) == []
    fresh = settle(account, desk, phone, tablet)
    assert held(fresh) == held(before) | {"new.jpg": held(fresh)["new.jpg"]}
    assert ankipi(server, "check", "--deep").returncode == 0
    assert "Type this" not in ankipi(server, "status").stdout


def test_an_older_version_does_not_replace_one_that_the_server_may_not_open(strict_account):
    account = strict_account
    desk, phone = pair(account)
    put(desk, "a.jpg", b"old")
    put(desk, "b.jpg", b"b")
    settle(account, desk, phone)
    replace(desk, "a.jpg", b"newer")
    sync_media(desk)
    forbid(media_of(account) / "a.jpg")
    put(phone, "c.jpg", b"c")
    assert press(phone, PRESSES) + press(desk) == []
    assert (media_of(account) / "a.jpg").read_bytes() == b"newer"
    allow(media_of(account) / "a.jpg")
    settle(account, phone, desk)
    assert (folder(phone) / "a.jpg").read_bytes() == (folder(desk) / "a.jpg").read_bytes() == b"newer"


def test_devices_replace_and_delete_files_that_the_server_may_not_open(strict_account):
    account = strict_account
    desk, phone = pair(account)
    for name in ("replaced.jpg", "deleted.jpg", "again.jpg", "kept.jpg"):
        put(desk, name, name.encode())
    settle(account, desk, phone)
    for path in media_of(account).iterdir():
        forbid(path)
    tablet = account.device("tablet")
    assert press(tablet) == [] and held(tablet) == {}
    replace(desk, "replaced.jpg", b"better")
    delete(desk, "deleted.jpg")
    put(tablet, "again.jpg", b"again.jpg")  # sent by a device for which it is new
    assert press(desk, 2) + press(tablet, 2) + press(phone, 2) == []
    assert set(held(tablet)) == {"replaced.jpg", "again.jpg"} and set(held(phone)) == {"replaced.jpg", "again.jpg", "kept.jpg"}
    account.server.power_cut()
    assert press(tablet) == [] and "kept.jpg" not in held(tablet)
    allow(media_of(account) / "kept.jpg")
    fresh = settle(account, desk, phone, tablet)
    assert set(held(fresh)) == {"replaced.jpg", "again.jpg", "kept.jpg"}
    assert (folder(phone) / "replaced.jpg").read_bytes() == b"better"
    assert ankipi(account.server, "check", "--deep").returncode == 0


@pytest.mark.parametrize("files, number", [(5, 2), (60, 55), (1, 0)], ids=["few files", "many files", "the only file"])
def test_a_file_that_the_disk_cannot_read_comes_from_a_device(new_server, new_account, odd_disk, files, number):
    account = new_account(new_server("anna:secret", LD_PRELOAD=odd_disk, ODD_DISK="sectors"), "anna", "secret")
    desk, phone = pair(account)
    for n in range(files):
        put(desk, f"{n}.jpg", random.Random(n).randbytes(1000))
    before = settle(account, desk, phone)
    lost = f"{number}.jpg"
    (media_of(account) / lost).chmod(0o1600)
    tablet = account.device("tablet")
    assert press(tablet) == []
    assert set(held(tablet)) == set(held(before)) - {lost}
    assert f'"{lost}" cannot be read' in account.server.log()
    press(desk, PRESSES)
    assert held(settle(account, desk, phone, tablet)) == held(before)
    assert (stored(account) / "damaged" / lost).exists()
