"""File systems that do not tell capital from small letters, as exFAT and vfat: one folder is not two accounts."""

import os
import subprocess

import pytest

from commands import done, refused

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")


@pytest.fixture
def one_folder(tmp_path):
    """A data folder in which `Anna` and `anna` are one, as on a file system without case. Such file systems need a module of the
    kernel that few build machines have: here it is one folder in two places."""
    base = tmp_path / "base0"
    for name in ("Anna", "anna"):
        (base / name).mkdir(parents=True)
    mounted = subprocess.run(["mount", "--bind", base / "Anna", base / "anna"], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no mounting here: {mounted.stderr}")
    yield base
    subprocess.run(["umount", "--lazy", base / "anna"], check=True)


def test_the_first_account_keeps_its_folder_and_the_other_is_named(one_folder, new_server, new_account):
    server = new_server("Anna:secret", "anna:other", "bob:secret")
    assert "the account \"anna\" is closed" in server.log() and "\"Anna\"" in server.log(), server.log()
    account = new_account(server, "Anna", "secret")
    account.settle(*account.two_devices())
    new_account(server, "bob", "secret").two_devices()
    with pytest.raises(Exception):
        new_account(server, "anna", "other").device("stranger").login()


def test_a_second_account_in_one_folder_is_refused(one_folder, new_server):
    server = new_server("bob:secret")
    done(server, "user", "add", "Anna", input="secret\n")
    assert "choose another name" in refused(server, "user", "add", "anna", input="secret\n")
    assert "anna:" not in (server.base / "users").read_text()
    # Where the file system tells case apart, both are fine.
    done(server, "user", "add", "Bert", input="secret\n")
    done(server, "user", "add", "bert", input="secret\n")
