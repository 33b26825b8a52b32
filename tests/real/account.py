"""An account and the devices of its owner."""

from pathlib import Path

from device import Device
from rows import assert_same, rows
from server import REFERENCE, Server

# (table, column) pairs that differ between two real clients which are in sync through the real server.
NOT_SYNCED = {
    # Every sync is stamped, so only the last device to sync shares these with the server; see `settle`.
    ("col", "mod"),
    ("col", "usn"),
    # When this very device last synced.
    ("col", "ls"),
    # The config travels as one object without stamps: its sender keeps those of its keys, its receiver stamps all of them anew.
    ("config", "usn"),
    ("config", "mtime_secs"),
    # Tags travel as bare names, and the receiver stamps them with the usn that it expects next.
    ("tags", "usn"),
}


class Account:
    def __init__(self, server: Server, user: str, password: str, folder: Path):
        self.server, self.user, self.password, self.folder = server, user, password, folder
        self.devices: list[Device] = []

    def device(self, name: str) -> Device:
        """A device that has never synced and is empty."""
        device = Device(self.folder / self.user / name, self.server.url, self.user, self.password)
        self.devices.append(device)
        return device

    def device_in_sync(self, name: str) -> Device:
        """A new device that has downloaded the account."""
        device = self.device(name)
        device.download()
        return device

    def two_devices(self, *fronts: str) -> tuple[Device, Device]:
        """A desktop and a phone that share these notes, in the deck Default."""
        desk = self.device("desk")
        for front in fronts or ("one", "two", "three"):
            desk.add_note(front, "back")
        desk.upload()
        return desk, self.device_in_sync("phone")

    def settle(self, *devices: Device, ignoring: set[tuple[str, str]] = frozenset()) -> Device:
        """Brings all devices up to date and checks that they and a fresh device hold the same rows, which the client's own
        check finds sound. Gives the fresh device."""
        for device in devices * 2:  # the second round brings to the first devices what the last ones had
            device.sync()
        fresh = self.device_in_sync(f"fresh{len(self.devices)}")
        held = rows(fresh.col)
        for device in devices:
            assert_same(rows(device.col), held, NOT_SYNCED | ignoring, f"{device.name} / fresh download")
        # The official server stamps the collection anew with each download, so that all other devices have to sync again.
        last, downloaded = devices[-1].col.db.first("select mod, usn from col"), fresh.col.db.first("select mod, usn from col")
        assert REFERENCE or last == downloaded
        assert fresh.col.db.list("pragma integrity_check") == ["ok"]
        problems = list(fresh.col._backend.check_database())
        assert not problems, problems
        return fresh

    def close(self) -> None:
        for device in self.devices:
            device.close()
