"""Disks that lack something: real ones where this machine can mount them (mergerfs, sshfs), else a library that says so."""

import os
import subprocess

import pytest

from programs import program
from server import ANKIPI, Server, free_port
from test_media import sync_media

pytestmark = pytest.mark.ours


def mount_mergerfs(branch, mount):
    """As OpenMediaVault mounts it: without the page cache, so without shared memory."""
    subprocess.run([program("mergerfs", "mergerfs"), "-o", "cache.files=off,minfreespace=0", branch, mount], check=True)


def mount_sshfs(branch, mount):
    """A folder of another machine over SFTP, with the program of OpenSSH at the other end and no network between."""
    sshfs, other_end = program("sshfs", "sshfs"), program("sftp-server", "openssh-sftp-server")
    ssh = branch.with_name("ssh")
    ssh.write_text(f"#!/bin/sh\nexec {other_end}\n")
    ssh.chmod(0o700)
    subprocess.run([sshfs, "-o", f"ssh_command={ssh},direct_io", f"machine:{branch}", mount], check=True)


@pytest.fixture(params=[mount_mergerfs, mount_sshfs], ids=["mergerfs", "sshfs"])
def pool(request, tmp_path):
    if not os.path.exists("/dev/fuse") or os.getuid() != 0:
        pytest.skip("needs FUSE and root")
    branch, mount = tmp_path / "branch", tmp_path / "pool"
    branch.mkdir(), mount.mkdir()
    request.param(branch, mount)
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def whole_story(account):
    """Collections and media, both ways."""
    desk, phone = account.two_devices()
    for n in range(2):
        for device, other in [(desk, phone), (phone, desk)]:
            device.add_note(f"{device.name} {n}")
            device.col.media.write_data(f"{device.name}{n}.txt", f"of {device.name} {n}".encode())
            account.settle(device, other)
            sync_media(device)
            sync_media(other)
    new = account.device_in_sync("new")
    sync_media(new)
    assert len(os.listdir(new.col.media.dir())) == len(os.listdir(desk.col.media.dir())) == 4


def test_folders_that_cannot_be_synced_are_a_warning(new_server, new_account, odd_disk):
    server = new_server("anna:secret", LD_PRELOAD=odd_disk, ODD_DISK="folders")
    assert "cannot sync folders" in server.log()
    whole_story(new_account(server, "anna", "secret"))
    server.power_cut()
    assert server.healthy()


def test_without_locks_a_second_server_is_noticed_all_the_same(new_server, new_account, odd_disk):
    server = new_server("anna:secret", LD_PRELOAD=odd_disk, ODD_DISK="locks")
    assert "no file locks" in server.log()
    second = subprocess.run([ANKIPI, "serve"], env=server.env | {"SYNC_PORT": str(free_port())}, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1 and "another ankipi is running" in second.stderr
    status = subprocess.run([ANKIPI, "status", "--base", server.base], env=server.env, capture_output=True, text=True)
    assert status.returncode == 0 and "no file locks" in status.stdout
    whole_story(new_account(server, "anna", "secret"))
    server.power_cut()  # a killed server holds no lock
    assert server.healthy()


def test_a_pool_without_shared_memory(pool, new_account):
    server = Server(pool / "base", ["anna:secret"])
    try:
        assert "no shared memory" in server.log()
        whole_story(new_account(server, "anna", "secret"))
        server.power_cut()
        new_account(server, "anna", "secret").device_in_sync("after the cut").sync()
        assert " 500 " not in server.log(), server.log()
    finally:
        server.stop()


def test_a_disk_of_linux_gets_no_warning(new_server):
    assert "the disk of" not in new_server("anna:secret").log()


def test_all_of_ipv6_where_there_is_none(new_server, odd_disk):
    server = new_server("anna:secret", SYNC_HOST="::", LD_PRELOAD=odd_disk, ODD_DISK="ipv6")
    assert server.healthy() and "no IPv6" in server.log()
