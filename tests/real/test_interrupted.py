"""Syncs that end in the middle: nothing may be lost, doubled or half done, and the next sync heals everything."""

import pytest
from anki.errors import NetworkError, SyncError

from proxy import CUT
from rows import USNS
from wire import request

STEPS = ["meta", "start", "applyGraves", "applyChanges", "chunk", "applyChunk", "sanityCheck2", "finish"]

# If the server finishes and the client does not hear of it, the client sends its rows again, with the usn of the second
# sync; the server, which has them, keeps those of the first.
SENT_TWICE = USNS


@pytest.fixture
def busy_pair(account, proxy):
    return busy(account, proxy)


def busy(account, proxy):
    """Two devices with every kind of change between them; the desk has yet to sync, and does so through the proxy."""
    desk, phone = account.two_devices()
    phone.add_note("from the phone", deck="Phone", tags="phone")
    phone.col.remove_notes([phone.note("three").id])
    phone.sync()
    desk.use(proxy.url)
    desk.add_note("from the desk", deck="Desk", tags="desk")
    desk.add_notes(130, "many")  # two chunks
    desk.edit("one", "uno")
    desk.review(1)
    desk.col.remove_notes([desk.note("two").id])
    return desk, phone


def fails(device) -> None:
    with pytest.raises((SyncError, NetworkError)):
        device.try_sync()


def converges(account, desk, phone, ignoring=frozenset()) -> None:
    fresh = account.settle(desk, phone, ignoring=ignoring)
    assert [front for front in fresh.fronts() if not front.startswith("many")] == ["from the desk", "from the phone", "uno"]
    assert (fresh.count("notes"), fresh.count("cards"), fresh.count("revlog")) == (133, 133, 1)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("failure", [500, CUT], ids=["error", "cut"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails(account, proxy, busy_pair, step, failure, moment):
    """Before: the server never hears of it. After: it has done its part, and only the answer is lost. With an
    error the client can still say that it gives up; when the line is cut it cannot."""
    desk, phone = busy_pair
    getattr(proxy, moment)(step, lambda: failure)
    fails(desk)
    proxy.mend()
    converges(account, desk, phone, SENT_TWICE if (step, moment) == ("finish", "after") else set())


@pytest.mark.parametrize("step", ["start", "applyChunk", "sanityCheck2", "finish"])
def test_the_other_device_syncs_first_after_a_cut(account, proxy, busy_pair, step):
    desk, phone = busy_pair
    proxy.after(step, lambda: CUT)
    fails(desk)
    phone.add_note("meanwhile")
    phone.sync()
    desk.use(account.server.url)
    desk.sync()
    phone.sync()
    assert desk.fronts() == phone.fronts()
    phone.col.remove_notes([phone.note("meanwhile").id])
    converges(account, desk, phone, SENT_TWICE if step == "finish" else set())


@pytest.mark.parametrize("step", ["applyChanges", "chunk", "applyChunk", "sanityCheck2", "finish"])
def test_another_device_takes_over_a_stale_session(account, proxy, busy_pair, step):
    desk, phone = busy_pair
    phone.add_note("meanwhile")
    proxy.before(step, phone.sync)
    with pytest.raises(SyncError) as err:  # not a network error: the server says that somebody else syncs
        desk.try_sync()
    assert "one" in str(err.value).lower(), err.value
    phone.col.remove_notes([phone.note("meanwhile").id])
    converges(account, desk, phone)


def test_an_upload_of_another_device_ends_a_session(account, proxy, busy_pair):
    desk, phone = busy_pair
    proxy.before("applyChunk", phone.upload)
    fails(desk)
    desk.download()
    fresh = account.settle(desk, phone)
    assert fresh.fronts() == ["from the phone", "one", "two"]


def glance(account, device) -> None:
    assert request(account, "meta", {"v": 11, "cv": "anki,26.09.3 (00000000),linux"}, device.auth.hkey, skey="other").status == 200


@pytest.mark.ours
@pytest.mark.parametrize("step", ["applyChanges", "chunk", "applyChunk", "finish"])
def test_a_glance_of_another_device_does_not_end_a_session(account, proxy, busy_pair, step):
    """The desktop asks now and then whether there is something to sync, to colour its button."""
    desk, phone = busy_pair
    # Scripted, because the client remembers the last answer for some minutes.
    proxy.before(step, lambda: glance(account, phone))
    desk.sync()
    converges(account, desk, phone)


@pytest.mark.parametrize("step", ["applyChanges", "chunk", "applyChunk", "finish"])
def test_a_download_in_the_middle_of_a_session_gets_the_state_before_it(account, proxy, busy_pair, step):
    """It ends the session, but the desk's next sync is as good."""
    desk, phone = busy_pair
    proxy.before(step, phone.download)
    fails(desk)
    assert phone.fronts() == ["from the phone", "one", "two"]
    converges(account, desk, phone)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["start", "applyChanges", "applyChunk", "sanityCheck2", "finish"])
def test_the_power_fails_in_the_middle(new_server, new_account, new_proxy, step, moment):
    account = new_account(new_server("anna:secret"), "anna", "secret")
    proxy = new_proxy(account)
    desk, phone = busy(account, proxy)
    getattr(proxy, moment)(step, account.server.power_cut)
    if (step, moment) in [("start", "before"), ("finish", "after")]:
        desk.sync()  # nothing was begun, or all was done and the answer was on its way
    else:
        fails(desk)
    converges(account, desk, phone)


@pytest.mark.parametrize("direction", ["upload", "download"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_full_sync_that_fails(account, proxy, busy_pair, direction, moment):
    desk, phone = busy_pair
    getattr(proxy, moment)(direction, lambda: CUT)
    with pytest.raises((SyncError, NetworkError)):
        getattr(desk, direction)()
    assert "from the desk" in desk.fronts()
    proxy.mend()
    getattr(desk, direction)()
    if direction == "upload":
        phone.download()
    fresh = account.settle(desk, phone)
    assert ("from the desk" in fresh.fronts()) == (direction == "upload")
