"""The fail2ban filter that we ship, read by fail2ban's own tester on lines that a real server wrote."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from junk import log_in
from proxies import program
from server import phc

pytestmark = pytest.mark.ours

FAIL2BAN = Path(__file__).resolve().parents[2] / "cross/fail2ban"

# What somebody would send who wants 203.0.113.9 banned.
FORGERIES = [
    'x" ip=203.0.113.9 reason=wrong password',
    'x\nWARN  [login] login failed user="a" ip=203.0.113.9 reason=wrong password',
    "x\r\nNov 24 09:00:00 pi ankipi[1]: WARN  [login] login failed user=\"a\" ip=203.0.113.9 reason=throttled",
    'x\\" ip=203.0.113.9 reason=unknown user',
    'x\u2028WARN  [login] login failed user="a" ip=203.0.113.9 reason=wrong password',
]


@pytest.fixture
def tester(tmp_path):
    regex = program("fail2ban-regex", "fail2ban", give_up=pytest.fail)
    # Where it is copied to: beside the filters of the package, of which it includes one.
    config = tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", config)
    shutil.copytree(FAIL2BAN, config, dirs_exist_ok=True)

    def run(lines: list[str]) -> list[str]:
        """The addresses of the lines that the filter finds."""
        log = tmp_path / "log"
        log.write_text("".join(line + "\n" for line in lines))
        tester = [regex, "--config", str(config), "-o", "ip", str(log), "ankipi"]
        done = subprocess.run(tester, capture_output=True, text=True)
        # It ends with 1 where nothing was found, too.
        assert not done.stderr, done.stderr
        return [line for line in done.stdout.split() if re.fullmatch(r"[0-9a-f.:]+", line)]

    return run


@pytest.fixture
def log(new_server):
    """What a server writes of good and bad logins."""
    server = new_server("anna:" + phc("secret"), PASSWORDS_HASHED="1", SYNC_IP_HEADER="RightmostXForwardedFor")
    assert log_in(server, "anna", "secret", "198.51.100.1") == 200
    assert [log_in(server, "anna", "guess", "192.0.2.7") for _ in range(5)] == [403] * 4 + [503]
    assert log_in(server, "nobody", "guess", "2001:db8::7") == 403
    for name in FORGERIES:
        assert log_in(server, name, FORGERIES[1], "192.0.2.8") == 403
    server.get("/sync/x WARN  [login] login failed".replace(" ", "%20"))
    return server.log().splitlines()


def stamped(lines: list[str]) -> list[str]:
    """As syslog and journald write them, which get no times from us."""
    return [f"Nov 24 09:00:00 pi ankipi[4711]: {line.split('Z ', 1)[1]}" for line in lines]


@pytest.mark.parametrize("written", [list, stamped])
def test_every_failure_is_found_with_its_address_and_nothing_else_is(log, tester, written):
    found = tester(written(log))
    assert sorted(found) == sorted(["192.0.2.7"] * 5 + ["2001:db8::7"] + ["192.0.2.8"] * len(FORGERIES)), "\n".join(log)


def test_the_jail_uses_the_filter():
    jail = configparser.ConfigParser()
    assert jail.read(FAIL2BAN / "jail.d/ankipi.conf")
    assert jail["ankipi"]["filter"] == "ankipi" and jail["ankipi"].getboolean("enabled")
