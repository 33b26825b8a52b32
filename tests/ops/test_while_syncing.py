"""Commands that read a collection into which a device is just syncing."""

import re
import subprocess

import pytest

from commands import done
from server import command
from test_export import imported


def begin(server, *args: str) -> subprocess.Popen:
    return subprocess.Popen([*command(official=False), *args], env=server.env, stdout=subprocess.PIPE, text=True)


# When it begins, and when all of its changes are in the transaction.
@pytest.mark.parametrize("moment", ["applyChanges", "sanityCheck2"])
def test_commands_read_what_was_committed_before_the_sync(new_server, new_account, new_proxy, tmp_path, moment):
    server = new_server("anna:secret")
    account = new_account(server, "anna", "secret")
    desk, phone = account.two_devices()
    desk.add_note("four")
    proxy = new_proxy(account)
    desk.use(proxy.url)
    package = tmp_path / "anna.colpkg"
    waiting = []

    def while_it_syncs():
        assert "3 notes, 3 cards" in done(server, "status")
        assert re.search(r"in use .* 3 +3 ", done(server, "backup", "list"))
        waiting.extend([begin(server, "export", "anna", str(package)), begin(server, "check")])
        for process in waiting:
            process.wait(30)

    proxy.before(moment, while_it_syncs)
    desk.sync()
    said = [process.communicate(timeout=30)[0] for process in waiting]
    assert "anna.colpkg" in said[0] and "anna: in order" in said[1], said
    assert [process.returncode for process in waiting] == [0, 0]
    copy = imported(package, tmp_path / "copy")
    # Changes of the sync are in the WAL, so nobody has to wait for its end.
    assert copy.fronts() == ["one", "three", "two"]
    copy.close()
    phone.sync()
    assert phone.fronts() == ["four", "one", "three", "two"]
    assert "4 notes, 4 cards" in done(server, "status")
