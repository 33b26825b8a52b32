"""The set-up of a well-known guide to self-hosting, step by step, with ankipi in the place of `anki --syncserver`."""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from commands import done
from device import FULL_SYNC
from server import Server, command
from test_media import put, settle, sync_media

# The guide's unit, but for the accounts that it leaves to the reader.
UNIT = """
[Unit]
Description=Personal Anki Sync Server
After=network.target

[Service]
ExecStart=anki --syncserver
Restart=always
User=anki
Group=anki
Environment=SYNC_BASE="/var/lib/anki"
Environment=MAX_SYNC_PAYLOAD_MEGS=500
Environment=SYNC_USER1=anna:pass1
Environment=SYNC_USER2=bob:pass2

[Install]
WantedBy=multi-user.target
"""


class Board:
    """A root folder that a user `anki` is made in, and seen through that user's eyes."""

    def __init__(self, root: Path):
        self.root = root
        (root / "etc").mkdir()
        (root / "usr/bin").mkdir(parents=True)
        for name in ("passwd", "group", "shadow", "gshadow"):
            (root / "etc" / name).touch()
        shutil.copy("/etc/login.defs", root / "etc")
        shutil.copy(command(official=False)[0], root / "usr/bin/ankipi")
        subprocess.run(["useradd", "--prefix", root, "-b", "/var/lib/", "-s", "/usr/bin/nologin", "anki"], check=True)
        line = (root / "etc/passwd").read_text().split(":")
        self.uid, self.gid = int(line[2]), int(line[3])

    def own(self, path: str) -> None:
        """mkdir and chown, as the guide has them."""
        (self.root / path).mkdir(parents=True)
        os.chown(self.root / path, self.uid, self.gid)

    def environment(self, unit: str) -> dict[str, str]:
        """As systemd reads it."""
        lines = re.findall(r"^Environment=(.*)$", unit, re.MULTILINE)
        return dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))


class Service(Server):
    """ankipi as the unit runs it: as that user and with these settings."""

    def __init__(self, board: Board, unit: str):
        self.board = board
        env = board.environment(unit)
        base = board.root / env.pop("SYNC_BASE").lstrip("/")
        super().__init__(base, [], **env)

    def command_line(self) -> list[str]:
        who = ["setpriv", f"--reuid={self.board.uid}", f"--regid={self.board.gid}", "--clear-groups", "--no-new-privs"]
        return [*who, str(self.board.root / "usr/bin/ankipi")]


@pytest.fixture
def board():
    if os.getuid() != 0:
        pytest.skip("only root can act as another user")
    root = Path(tempfile.mkdtemp(prefix="ankipi-board-"))
    root.chmod(0o755)
    yield Board(root)
    shutil.rmtree(root)


def test_the_guide_step_by_step(board, new_account):
    board.own("var/lib/anki")
    service = Service(board, UNIT)
    try:
        for user, password in (("anna", "pass1"), ("bob", "pass2")):
            account = new_account(service, user, password)
            desk, phone = account.two_devices(f"{user}'s")
            put(desk, "large.jpg", os.urandom(5_000_000))
            sync_media(desk)
            sync_media(phone)
            account.settle(desk, phone)
            settle(account, desk, phone)
        service.power_cut()
        desk.sync()
        desk.upload()
        service.stop()
        # The owner is root at the terminal; the server still must be able to use what this makes.
        done(service, "restore", "bob", "1")
        done(service, "check", "--fix")
        service.start()
        assert desk.try_sync() == FULL_SYNC
        desk.download()
    finally:
        service.stop()
    made = [path for path in service.base.rglob("*")]
    assert {path.name for path in made} >= {"anna", "bob", "collection.anki2", "media.db", "large.jpg"}
    for path in made:
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (board.uid, board.gid), path
        assert status.st_mode & 0o077 == 0, f"others may look into {path}"


def test_a_data_folder_that_belongs_to_somebody_else_is_named(board):
    """The guide's chown has its arguments the wrong way round, so that the folder stays root's."""
    (board.root / "var/lib/anki").mkdir(parents=True)
    with pytest.raises(AssertionError) as ended:
        Service(board, UNIT)
    # The user of the guide is known in its root alone.
    told = re.search(r"chown -R (\S+) (\S+)$", str(ended.value), re.MULTILINE)
    assert told and told[2] == f"{board.root}/var/lib/anki", str(ended.value)
