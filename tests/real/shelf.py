"""What happens to a board over the years: its disk loses and spoils files, and folders come back from a copy."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from anki.errors import NetworkError, SyncError

from account import Account
from device import Device
from server import Server, command
from test_media import sync_media

# What every device that keeps syncing is in order after: the client looks again after a failed check of the counts, and sends
# what the server lacks with the sync after that.
PRESSES = 3


def stored(account: Account) -> Path:
    return account.server.base / account.user


def media_of(account: Account) -> Path:
    return stored(account) / "media"


def press(device: Device, times: int = 1) -> list[str]:
    """Presses on the sync button, for the media; what the client said to its user."""
    said = []
    for _ in range(times):
        try:
            sync_media(device)
        except (SyncError, NetworkError) as err:
            said.append(str(err))
    return said


def spoil(path: Path) -> None:
    """Flips one bit, as a card does: neither length nor times change."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(times.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": lose, "flipped bit": spoil, "cut": cut, "empty": empty, "folder in its place": folder_in_its_place,
}


def while_it(runs: bool, server: Server, event: Callable[[], None]) -> None:
    """Lets something happen to the disk while the server runs, or while it is stopped."""
    if runs:
        event()
        return
    server.stop()
    event()
    server.start()


def ankipi(server: Server, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([*command(), *words], env=server.env, capture_output=True, text=True)


class Copy:
    """A copy of a data folder, made as README says."""

    def __init__(self, server: Server):
        self.server, self.path = server, server.base.with_name(server.base.name + ".copy")
        server.stop()
        shutil.copytree(server.base, self.path)
        server.start()

    def put_back(self, official: bool) -> None:
        """Under Anki's own server or under ankipi."""
        self.server.stop()
        shutil.rmtree(self.server.base)
        shutil.copytree(self.path, self.server.base)
        self.server.official = official
        self.server.start()
