"""A device on a slow line does not hold up the others."""

import base64
import random

import pytest

# More than the buffers of a socket hold, so that the server is still sending when the device has the first block.
MEGABYTES = 12


@pytest.fixture
def big_pair(account):
    """Two devices with a collection that does not compress well."""
    desk = account.device("desk")
    noise = random.Random(1)
    for n in range(MEGABYTES):
        desk.add_note(f"big {n}", base64.b85encode(noise.randbytes(1 << 20)).decode())
    desk.upload()
    return desk, account.device_in_sync("phone")


def test_a_slow_download_is_one_state_while_another_device_syncs(account, proxy, big_pair):
    desk, phone = big_pair
    before = desk.fronts()
    tablet = account.device("tablet")
    tablet.use(proxy.url)

    def meanwhile():
        for n in range(3):
            desk.add_note(f"meanwhile {n}", tags="new")
            desk.col.remove_notes([desk.note(f"big {n}").id])
            desk.sync()
        phone.sync()

    proxy.midway("download", meanwhile)
    tablet.download()
    assert tablet.fronts() == before
    fresh = account.settle(tablet, desk, phone)
    assert fresh.count("notes") == MEGABYTES and "meanwhile 2" in fresh.fronts()


def test_a_slow_download_survives_an_upload_of_another_device(account, proxy, big_pair):
    desk, phone = big_pair
    before = desk.fronts()
    tablet = account.device("tablet")
    tablet.use(proxy.url)
    desk.add_note("replaced")
    proxy.midway("download", desk.upload)
    tablet.download()
    assert tablet.fronts() == before
    for device in (phone, tablet):
        device.download()
    assert "replaced" in account.settle(tablet, desk, phone).fronts()


def test_two_devices_download_at_once(account, proxy, big_pair):
    desk, phone = big_pair
    tablet = account.device("tablet")
    tablet.use(proxy.url)
    proxy.midway("download", phone.download)
    tablet.download()
    account.settle(tablet, desk, phone)


def test_another_account_syncs_during_a_slow_download(account, proxy, big_pair, shared_server, unused_users, new_account):
    desk, phone = big_pair
    other = new_account(shared_server, next(unused_users))
    proxy.midway("download", lambda: other.settle(*other.two_devices()) and None)
    phone.use(proxy.url)
    phone.download()
    account.settle(phone, desk)
