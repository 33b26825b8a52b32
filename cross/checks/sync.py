"""Lets two real Anki clients sync collection and media through an installed server: sync.py URL USER PASSWORD

The first time it uploads a collection; later, as after an upgrade, it expects what the last time left, and adds to it.
"""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/real"))

from account import Account  # noqa: E402
from device import FULL_DOWNLOAD  # noqa: E402
from test_media import held, put, sync_media  # noqa: E402


def main(url: str, user: str, password: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ankipi-sync-") as folder:
        account = Account(SimpleNamespace(url=url), user, password, Path(folder))
        desk = account.device("desk")
        if desk.try_sync() == FULL_DOWNLOAD:
            desk.download()
        else:
            desk.add_notes(10)
            desk.upload()
        before = desk.count("notes")
        desk.add_note(f"note {before}")
        desk.sync()
        put(desk, f"picture{before}.jpg", b"x" * 1000)
        sync_media(desk)
        phone = account.device_in_sync("phone")
        sync_media(phone)
        assert phone.count("notes") == before + 1 and f"picture{before}.jpg" in held(phone), held(phone)
        phone.edit(f"note {before}", f"edited {before}")
        account.settle(desk, phone)
        account.close()
    print(f"two clients hold {before + 1} notes")


if __name__ == "__main__":
    main(*sys.argv[1:])
