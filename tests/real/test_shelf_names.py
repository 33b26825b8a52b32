"""Disks that do not tell case apart, or cannot hold every name: every file goes through all the same.

On real disks of exFAT, NTFS and FAT, where this machine can mount them: the first two by FUSE, the last one if the kernel knows it. And
with a preloaded library that makes of any disk what FAT is.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from programs import program
from server import ANKIPI, Server
from shelf import PRESSES, ankipi, media_of, press
from test_media import delete, folder, held, pair, put, replace, settle, sync_media

pytestmark = pytest.mark.ours

VFAT_OPTIONS = os.environ.get("VFAT_OPTIONS", "loop,utf8,umask=077")
EMOJI, LONG = "😀.png", "x" * 116 + ".mp3"


def run(*words: str) -> bool:
    try:
        return subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def mount_exfat(image: Path, at: Path) -> str:
    """Mounts a new exFAT disk; gives the loop device that is to be detached with it."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("only root can mount, and only where there is FUSE")
    if not shutil.which("mount.exfat-fuse"):
        run("apt-get", "install", "-y", "--no-install-recommends", "exfat-fuse", "exfatprogs")
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    at.mkdir()
    loop = run("mkfs.exfat", str(image)) and subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True).stdout.strip()
    if not loop:
        pytest.skip("no exFAT here: mkfs.exfat is missing, or loop devices are not allowed")
    if not run("mount.exfat-fuse", loop, str(at)):
        run("losetup", "-d", loop)
        pytest.skip("no exFAT here: exfat-fuse is missing, or mounts are not allowed")
    return loop


def mount_ntfs(image: Path, at: Path) -> str:
    """As Windows takes names. There is no loop device."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("only root can mount, and only where there is FUSE")
    make, mount = program("mkfs.ntfs", "ntfs-3g"), program("lowntfs-3g", "ntfs-3g")
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    at.mkdir()
    assert run(make, "-F", "-q", "-Q", str(image))
    if not run(mount, "-o", "windows_names,ignore_case", str(image), str(at)):
        pytest.skip("no NTFS here: mounts are not allowed")
    return ""


def mount_vfat(image: Path, at: Path) -> str:
    """As most systems mount a stick, with names in UTF-8. There is no loop device to detach."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    at.mkdir()
    assert run(program("mkfs.vfat", "dosfstools"), str(image))
    if not run("mount", "-t", "vfat", "-o", VFAT_OPTIONS, str(image), str(at)):
        pytest.skip("no FAT here: this kernel does not know it, or loop devices are not allowed")
    return ""


@pytest.fixture(params=["exfat", "ntfs", "vfat", "preloaded"])
def account(request, tmp_path, new_account):
    if request.param == "preloaded":
        if "statically linked" in subprocess.run(["file", ANKIPI], capture_output=True, text=True).stdout:
            pytest.skip("nothing can be preloaded into a static program")
        library = tmp_path / "folding_disk.so"
        source = Path(__file__).with_name("folding_disk.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        server = Server(tmp_path / "base", ["anna:secret"], LD_PRELOAD=str(library))
        yield new_account(server, "anna", "secret")
        server.stop()
        return
    disk = tmp_path / "base"
    loop = {"exfat": mount_exfat, "ntfs": mount_ntfs, "vfat": mount_vfat}[request.param](tmp_path / "image", disk)
    try:
        server = Server(disk, ["anna:secret"])
        yield new_account(server, "anna", "secret")
        server.stop()
    finally:
        run("umount", str(disk))
        if loop:
            run("losetup", "-d", loop)


def test_names_that_differ_in_case_alone(account):
    desk, phone = pair(account)
    for name in ("a.jpg", "A.jpg", "b.jpg", "other.jpg", "ÄÖ.png", "äö.png"):
        replace(desk, name, b"in " + name.encode())
    before = held(desk)
    assert len(before) == 6
    fresh = settle(account, desk, phone)
    assert held(fresh) == before
    replace(phone, "B.jpg", b"in B.jpg, later")
    replace(desk, "a.jpg", b"in a.jpg, anew")
    fresh = settle(account, desk, phone)
    assert (folder(fresh) / "a.jpg").read_bytes() == b"in a.jpg, anew"
    assert (folder(fresh) / "A.jpg").read_bytes() == b"in A.jpg"
    assert (folder(fresh) / "b.jpg").read_bytes() == b"in b.jpg"
    delete(desk, "a.jpg", "B.jpg")
    fresh = settle(account, desk, phone)
    assert set(held(fresh)) == {"A.jpg", "b.jpg", "other.jpg", "ÄÖ.png", "äö.png"}
    assert ankipi(account.server, "check", "--deep").returncode == 0, ankipi(account.server, "check", "--deep").stdout
    account.server.power_cut()
    assert held(settle(account, desk, phone)) == held(fresh)


def test_names_that_the_disk_cannot_hold(account):
    desk, phone = pair(account)
    names = ["plain.jpg", EMOJI, LONG, "last.jpg"]
    for n, name in enumerate(names):
        replace(desk, name, b"%d" % n)
    sync_media(desk)
    fresh = settle(account, desk, phone)
    before = held(fresh)
    assert set(before) == set(names)
    desk.upload()
    package = account.folder / "anna.colpkg"
    assert f"with {len(names)} media files" in ankipi(account.server, "export", "anna", str(package)).stdout
    replace(desk, EMOJI, b"better")
    delete(desk, LONG)
    fresh = settle(account, desk, phone)
    assert (folder(fresh) / EMOJI).read_bytes() == b"better" and LONG not in held(fresh)
    assert ankipi(account.server, "check", "--deep").returncode == 0, ankipi(account.server, "check", "--deep").stdout


def test_what_is_damaged_comes_back(account):
    desk, phone = pair(account)
    for name in ("a.jpg", "A.jpg", EMOJI, "b.jpg"):
        replace(desk, name, b"in " + name.encode())
    before = settle(account, desk, phone)
    for stored in [*media_of(account).iterdir(), *media_of(account).with_name("media.odd").iterdir()]:
        stored.write_bytes(bytes(reversed(stored.read_bytes())))
    press(account.device("tablet"))  # which notices
    for _ in range(PRESSES):
        press(phone)
        press(desk)
    assert held(settle(account, desk, phone)) == held(before)
