"""Media files: what is in the folder of one device is in the folder of all, byte for byte."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from device import Device

MIB = 1024 * 1024


def folder(device: Device) -> Path:
    return Path(device.col.media.dir())


def put(device: Device, name: str, data: bytes) -> str:
    """Adds a file as the client does, which may choose another name."""
    return device.col.media.write_data(name, data)


def replace(device: Device, name: str, data: bytes) -> None:
    path = folder(device) / name
    path.write_bytes(data)
    # The client looks at whole seconds of the folder's and the file's time.
    later = time.time() + replace.ahead
    replace.ahead += 2
    os.utime(path, (later, later))
    os.utime(folder(device), (later, later))


replace.ahead = 2


def delete(device: Device, *names: str) -> None:
    device.col.media.trash_files(list(names))


def sync_media(device: Device, timeout: float = 300) -> None:
    if not device.auth:
        device.login()
    device.col.sync_media(device.auth)
    deadline = time.monotonic() + timeout
    while device.col.media_sync_status().active:  # raises what the sync ended with
        assert time.monotonic() < deadline, f"{device.name}: the media sync does not end"
        time.sleep(0.02)


def held(device: Device) -> dict[str, str]:
    """Each file's name and what is in it."""
    return {path.name: hashlib.sha1(path.read_bytes()).hexdigest() for path in folder(device).iterdir() if path.is_file()}


def settle(account, *devices: Device) -> Device:
    """Syncs all, and checks that they and a fresh device hold the same."""
    for device in devices * 2:
        sync_media(device)
    fresh = account.device(f"fresh{len(account.devices)}")
    sync_media(fresh)
    for device in devices:
        assert held(device) == held(fresh), device.name
    return fresh


def pair(account) -> tuple[Device, Device]:
    return account.device("desk"), account.device("phone")


def test_add_replace_delete_and_add_again(account):
    desk, phone = pair(account)
    put(desk, "a.jpg", b"first")
    put(desk, "b.mp3", b"sound")
    put(phone, "c.png", b"picture")
    settle(account, desk, phone)
    assert set(held(phone)) == {"a.jpg", "b.mp3", "c.png"}
    replace(phone, "a.jpg", b"second")
    delete(desk, "b.mp3")
    fresh = settle(account, desk, phone)
    assert set(held(fresh)) == {"a.jpg", "c.png"}
    assert (folder(desk) / "a.jpg").read_bytes() == b"second"
    put(phone, "b.mp3", b"sound")
    delete(desk, "c.png")
    settle(account, desk, phone)
    assert set(held(desk)) == {"a.jpg", "b.mp3"}
