"""The wrong disk: no empty server where the disk with the data is not mounted."""

import os
import subprocess
import time

import pytest

from commands import done
from server import Server, command, free_port


def start_fails(base, **env) -> str:
    """What a server says that refuses to start."""
    env = {"PATH": os.environ["PATH"], "SYNC_BASE": str(base), "SYNC_HOST": "127.0.0.1", "SYNC_PORT": str(free_port())} | env
    ended = subprocess.run(command(official=False), env=env, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1, ended
    return ended.stderr


def test_a_service_refuses_an_empty_folder_until_it_is_told(tmp_path, new_server, new_account):
    base = tmp_path / "base0"
    required = {"SYNC_REQUIRE_DATA": "yes"}
    said = start_fails(base, SYNC_USER1="anna:secret", **required)
    assert f"ankipi init {base}" in said and "mount" in said and not base.exists(), said
    base.mkdir()
    assert "ankipi init" in start_fails(base, SYNC_USER1="anna:secret", **required)
    assert list(base.iterdir()) == []

    made = subprocess.run([*command(official=False), "init", base], capture_output=True, text=True, check=True).stdout
    assert "new data folder" in made and (base / ".ankipi").stat().st_mode & 0o777 == 0o600
    server = new_server("anna:secret", **required)
    assert server.base == base
    account = new_account(server, "anna", "secret")
    account.two_devices()
    assert "already" in done(server, "init")
    server.stop()
    # The mark may get lost in a restore: what is there counts.
    (base / ".ankipi").unlink()
    server.start()
    assert (base / ".ankipi").exists()


def test_the_first_account_begins_a_folder(tmp_path, new_server):
    base = tmp_path / "base0"
    added = subprocess.run([*command(official=False), "user", "add", "anna", "--base", base], input="secret\n", capture_output=True, text=True)
    assert added.returncode == 0 and "new data folder" in added.stderr, added
    assert new_server(SYNC_REQUIRE_DATA="yes").base == base


def test_one_command_still_starts_a_first_server(new_server):
    assert (new_server("anna:secret").base / ".ankipi").exists()


def test_devices_wait_while_the_disk_is_away(new_server, new_account):
    """A stick that is pulled out: below its mount point is another folder, or none."""
    server = new_server("anna:secret")
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices()
    away = server.base.with_name("away")
    for leaves_a_folder in (False, True):
        server.base.rename(away)
        if leaves_a_folder:
            (server.base / "anna").mkdir(parents=True)
        desk.add_note(f"while it was away {leaves_a_folder}")
        with pytest.raises(Exception, match="(?i)try again"):
            desk.try_sync()
        assert server.get("/health")[0] in (502, 503)  # its private socket may be away, too
        if leaves_a_folder:
            assert [path.name for path in server.base.rglob("*")] == ["anna"], "something was written where the disk is missing"
            (server.base / "anna").rmdir()
            server.base.rmdir()
        away.rename(server.base)
        account.settle(desk, phone)
    assert "is the data folder still there?" in server.log()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_stick_that_is_not_mounted_and_then_is(tmp_path):
    """The same with a file system of its own."""
    stick, base = tmp_path / "stick", tmp_path / "stick/ankipi"
    stick.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "ankipi-test", stick], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no mounting here: {mounted.stderr}")
    server = None
    try:
        subprocess.run([*command(official=False), "init", base], check=True)
        server = Server(base, ["anna:secret"], SYNC_REQUIRE_DATA="yes")
        server.log_path = tmp_path / "log"
        subprocess.run(["umount", "--lazy", stick], check=True)
        assert server.get("/health")[0] in (502, 503)
        server.process.kill()
        server.process.wait()
        Server.running.remove(server)
        assert "ankipi init" in start_fails(base, SYNC_USER1="anna:secret", SYNC_REQUIRE_DATA="yes")
        assert list(stick.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", stick], capture_output=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_read_only_folder_is_explained_for_services_and_others(tmp_path):
    subprocess.run([*command(official=False), "init", tmp_path / "ro"], check=True)
    mounted = subprocess.run(["mount", "--bind", tmp_path / "ro", tmp_path / "ro"], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no mounting here: {mounted.stderr}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path / "ro"], check=True)
        assert "remount" in start_fails(tmp_path / "ro")
        said = start_fails(tmp_path / "ro", INVOCATION_ID="0" * 32)
        assert f"ReadWritePaths={tmp_path}/ro" in said and "ProtectSystem" in said
    finally:
        subprocess.run(["umount", tmp_path / "ro"], check=True)


def test_a_service_of_systemd_is_told_that_homes_are_hidden_from_it(tmp_path):
    """`ankipi init`, which it is told otherwise, would not help: the service's /home is empty."""
    def said(base, **env):
        env = {"PATH": "/usr/bin:/bin", "ANKIPI_CONFIG": "", "SYNC_REQUIRE_DATA": "yes", "SYNC_BASE": base} | env
        return subprocess.run(command(official=False), env=env, capture_output=True, text=True, timeout=20).stderr

    assert "ProtectHome" in said("/home/nobody-is-called-so/anki", INVOCATION_ID="1")
    assert "ProtectHome" not in said("/home/nobody-is-called-so/anki") + said(str(tmp_path), INVOCATION_ID="1")
