"""A stamp of the future, left by a clock that was wrong, heals by itself."""

import shutil
import sqlite3
import time

import pytest

from device import NO_CHANGES
from server import REFERENCE

pytestmark = pytest.mark.ours

MONTH_MS = 30 * 86_400_000


def stamp_future(server, future: int, schema_too: bool) -> None:
    path = server.base / "anna" / "collection.anki2"
    db = sqlite3.connect(path)
    db.execute("update col set mod = ?", (future,))
    if schema_too:
        db.execute("update col set scm = ?", (future,))
    db.commit()
    db.execute("pragma wal_checkpoint(truncate)")
    db.close()


@pytest.mark.parametrize("official", [False, True], ids=["ankipi", "official"])
@pytest.mark.parametrize("seen", ["unseen", "seen by both", "with the schema"])
def test_changes_of_the_config_are_kept(new_server, new_account, seen, official):
    server = new_server("anna:secret")
    if official:
        server.stop()
        shutil.rmtree(server.base)
        server.official = True
        server.start()
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices()
    server.stop()
    future = int(time.time() * 1000) + MONTH_MS
    stamp_future(server, future, seen == "with the schema")
    if seen == "seen by both":
        # As their last sync left it.
        for device in (desk, phone):
            device.col.db.execute("update col set mod = ?, ls = ?", future, future)
    server.official = REFERENCE
    server.start()
    if seen == "with the schema":
        desk.download()
        phone.download()
    if seen == "seen by both":
        for device in (desk, phone):
            device.sync()  # gives each a true stamp; the config that is sent with the last one counts
    for n in range(3):
        for one, other in ((desk, phone), (phone, desk)):
            key = f"{one.name}-{n}"
            # The client takes a change in the millisecond of the last stamp for none.
            time.sleep(0.003)
            one.col.set_config(key, n)
            for device in (one, other, one):
                assert device.try_sync() == NO_CHANGES
            assert other.col.get_config(key, None) == n, f"{key} did not reach {other.name}"
            assert one.col.get_config(key, None) == n, f"{key} was undone"
    account.settle(desk, phone)
    stamp, now = desk.col.db.scalar("select mod from col"), time.time() * 1000
    assert stamp < now + 60_000, "the stamp is still in the future"
