"""Disks that lack something: real ones where this machine can mount them (mergerfs, ntfs-3g), else a library that says so."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from server import ANKIPI, Server, free_port

pytestmark = pytest.mark.ours


@pytest.fixture(scope="session")
def odd_disk(tmp_path_factory):
    if not (compiler := shutil.which("cc")):
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("odd_disk") / "odd_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, Path(__file__).with_name("odd_disk.c"), "-ldl"], check=True)
    return str(library)


@pytest.fixture
def mergerfs(tmp_path):
    """As OpenMediaVault mounts it: without the page cache, so without shared memory."""
    if not shutil.which("mergerfs") or not os.path.exists("/dev/fuse") or os.getuid() != 0:
        pytest.skip("needs mergerfs, FUSE and root")
    branch, mount = tmp_path / "branch", tmp_path / "pool"
    branch.mkdir(), mount.mkdir()
    subprocess.run(["mergerfs", "-o", "cache.files=off", branch, mount], check=True)
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def whole_story(account):
    """Collections and media, both ways."""
    desk, phone = account.two_devices()
    for n in range(3):
        desk.add_note(f"on the desk {n}")
        desk.add_media(f"desk{n}.txt", b"desk" * (n + 1))
        account.settle(desk, phone)
        phone.add_note(f"on the phone {n}")
        phone.add_media(f"phone{n}.txt", b"phone" * (n + 1))
        account.settle(phone, desk)
    account.settle(account.device("new"), desk)


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


def test_a_pool_without_shared_memory(mergerfs, new_account):
    server = Server(mergerfs / "base", ["anna:secret"])
    try:
        assert "no shared memory" in server.log()
        whole_story(new_account(server, "anna", "secret"))
        server.power_cut()
        whole_story(new_account(server, "anna", "secret"))
        assert " 500 " not in server.log(), server.log()
    finally:
        server.stop()


def test_a_disk_of_linux_gets_no_warning(new_server):
    assert "the disk of" not in new_server("anna:secret").log()


def test_all_of_ipv6_where_there_is_none(tmp_path):
    """In a network namespace without IPv6."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0:
        pytest.skip("may not make namespaces")
    script = f"""
        sysctl -qw net.ipv6.conf.all.disable_ipv6=1 && ip link set lo up
        SYNC_HOST=:: SYNC_PORT=8080 SYNC_BASE={tmp_path}/base SYNC_USER1=a:b {ANKIPI} serve 2>{tmp_path}/log & server=$!
        for i in $(seq 200); do grep -q listens {tmp_path}/log && break; sleep 0.05; done
        python3 -c 'import http.client as h; c = h.HTTPConnection("127.0.0.1", 8080); c.request("GET", "/health"); print(c.getresponse().status)'
        kill $server; wait $server
    """
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    log = (tmp_path / "log").read_text()
    assert done.stdout.strip() == "200", (done, log)
    assert "no IPv6" in log
