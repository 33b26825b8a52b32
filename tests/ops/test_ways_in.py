"""Each way in has a test that goes it to a first sync of a real client. Those that need another machine or a package are in
cross/checks; this list keeps one from being lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from proxies import program
from server import REPO, command, free_port

WAYS = {
    "AnkiWeb": ("tests/real/test_takeover.py", "def test_from_ankiweb_as_docs_ways_in_tells"),
    "a package of a collection (.colpkg)": ("tests/ops/test_import_colpkg.py", "def test_a_package_of_the_real_client_is_there_for_every_device"),
    "the official server's folder": ("tests/real/test_takeover.py", "def test_the_official_servers_folder_is_taken_over_and_given_back"),
    "ankisyncd": ("tests/ops/test_import.py", 'ids=["ankisyncd", "anki-sync-server-rs"]'),
    "anki-sync-server-rs": ("tests/ops/test_import.py", 'ids=["ankisyncd", "anki-sync-server-rs"]'),
    "a .deb": ("cross/checks/deb.sh", "page_lines docs/install.md 'With a '"),
    "OpenWrt": ("tests/ops/test_ways_in.py", "def test_a_router_is_set_up_by_its_page_alone"),
    "an .ipk on a router's processor": ("cross/checks/openwrt.sh", "sync"),
    "a container": ("cross/checks/image.sh", "sync"),
    "Arch": ("cross/checks/arch.sh", "makepkg"),
    "Alpine": ("cross/checks/alpine.sh", "start"),
    "source": ("tests/ops/test_commands_of_docs.py", "cargo run --release"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_in_is_gone_by_a_test(way):
    path, what = WAYS[way]
    assert what in (REPO / path).read_text(), way


def test_each_check_of_a_package_syncs_with_a_real_client_and_runs_in_ci():
    runs = (REPO / ".ci/run").read_text()
    for path in ("deb.sh", "openwrt.sh", "image.sh"):
        script = (REPO / "cross/checks" / path).read_text()
        assert "shared/installed.sh" in script or "checks/sync.py" in script, path
        assert f"cross/checks/{path}" in runs, path


def lines_of(page: str, before: str) -> list[str]:
    """The lines of the first block after a sentence of a page, as a newcomer types them."""
    text = (REPO / page).read_text()
    [block] = re.findall(r"\n\n((?:    .*\n)+)", text[text.index(before):])[:1]
    return [re.sub(r"\s+#\s.*", "", line.strip()).replace("NAME", "me") for line in block.splitlines()]


@pytest.fixture
def router(tmp_path):
    """The root of a router: busybox, what stands for OpenWrt's own commands, a mounted disk, and the package in /root."""
    if os.getuid() != 0:
        pytest.skip("only root can change its root")
    root, built = tmp_path / "root", tmp_path / "built"
    stand_ins = REPO / "tests/ops/openwrt"
    for folder in ("bin", "sbin", "dev", "etc/rc.d", "lib", "mnt/sda1", "proc", "root", "tmp", "usr/bin", "usr/sbin", "var/run"):
        (root / folder).mkdir(parents=True)
    for parent in (*tmp_path.parents, tmp_path):
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)  # the service is not root
    tmp_path.chmod(0o755)
    shutil.copy(program("busybox", "busybox-static"), root / "bin/busybox")
    subprocess.run(["chroot", root, "/bin/busybox", "--install", "-s"], check=True)
    for device, minor in (("null", "3"), ("urandom", "9")):
        subprocess.run(["mknod", "-m", "666", root / "dev" / device, "c", "1", minor], check=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    shutil.copy(stand_ins / "functions.sh", root / "lib")
    shutil.copy(stand_ins / "rc.common", root / "etc")
    for name in ("uci", "service", "opkg"):
        shutil.copy(stand_ins / name, root / "usr/bin")
    # A package as cross/packages/openwrt.sh makes it, of the program at hand: what it is linked with comes along.
    (built / "x86_64-unknown-linux-musl").mkdir(parents=True)
    own = command(official=False)[0]
    subprocess.run(["strip", "-o", built / "x86_64-unknown-linux-musl/ankipi", own], check=True)
    for library in re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", own], capture_output=True, text=True).stdout):
        (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library[1:])
    env = os.environ | {"CROSS_TARGET": str(built), "CROSS_BUILT": "1"}
    subprocess.run([REPO / "cross/packages/openwrt.sh", "x86_64"], env=env, check=True, capture_output=True)
    shutil.copy(next(built.glob("*.ipk")), root / "root")
    yield root
    pid = root / "var/run/ankipi.pid"
    if pid.exists():
        os.kill(int(pid.read_text()), signal.SIGTERM)


def test_a_router_is_set_up_by_its_page_alone(router):
    lines = lines_of("docs/install.md", "On OpenWrt")
    assert lines[0].startswith("opkg install ") and lines[-1] == "ankipi user add me", lines
    port = free_port()
    # The port of the page may be taken here.
    lines.insert(1, f"uci set ankipi.main.sync_port={port}")
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    said = ""
    for line in lines:
        ended = subprocess.run(["chroot", router, "sh", "-c", f"cd /root; {line}"], env=env, input="secret\n", capture_output=True,
                               text=True, timeout=60)
        said += ended.stdout + ended.stderr
        assert ended.returncode == 0, (line, ended)
        if line.startswith("service"):
            wait_for(port)
    assert "me can log in now; the account is in /mnt/sda1/ankipi/users" in said and "No server runs" not in said, said
    two_clients_sync(port)
    # Also with the service stopped, commands mean its folder.
    subprocess.run(["chroot", router, "service", "ankipi", "stop"], env=env, check=True)
    checked = subprocess.run(["chroot", router, "ankipi", "check"], env=env, capture_output=True, text=True)
    assert checked.stdout.endswith("me: in order\n"), checked


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read() == b"ok\n"
            return
        except OSError:
            assert time.monotonic() < deadline, "the service does not answer"
            time.sleep(0.02)


def two_clients_sync(port: int) -> None:
    """Collection and media, as the checks of packages do."""
    ended = subprocess.run([sys.executable, REPO / "cross/checks/sync.py", f"http://127.0.0.1:{port}/", "me", "secret"],
                           capture_output=True, text=True, timeout=120)
    assert ended.stdout == "two clients hold 11 notes\n", ended
