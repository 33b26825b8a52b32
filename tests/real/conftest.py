"""Fixtures. Stories get a fresh account each, on a server that they share, as starting one takes longer than most stories."""

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from account import Account
from proxy import Proxy
from server import REFERENCE, Server, command, phc

USERS = 500
PASSWORD = "secret"


def pytest_configure(config):
    config.addinivalue_line("markers", "ours: about a recommended difference from the official server; skipped with REFERENCE=1")
    config.addinivalue_line("markers", "slow: takes most of a minute")


def pytest_sessionstart():
    try:
        command()
    except FileNotFoundError as err:
        pytest.exit(str(err), returncode=1)  # once, rather than in each story


def pytest_collection_modifyitems(items):
    for item in items:
        if REFERENCE and item.get_closest_marker("ours"):
            item.add_marker(pytest.mark.skip(reason="the official server does this differently"))


def pytest_runtest_setup():
    for server in Server.running:
        server.mark_log()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        report.sections += [(f"log of the server at {server.url}", server.log()) for server in Server.running]
    return report


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    # One cheap hash for all: the usual one takes longer than a whole story.
    hashed = phc(PASSWORD)
    server = Server(tmp_path_factory.mktemp("shared") / "base", [f"u{n}:{hashed}" for n in range(USERS)], PASSWORDS_HASHED="1")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def unused_users():
    return iter([f"u{n}" for n in range(USERS)])


@pytest.fixture
def new_account(tmp_path):
    """Makes an `Account`: whose devices are closed at the end."""
    accounts = []

    def make(server, user, password=PASSWORD):
        accounts.append(Account(server, user, password, tmp_path / f"devices{len(accounts)}"))
        return accounts[-1]

    yield make
    for account in accounts:
        account.close()


@pytest.fixture
def account(shared_server, unused_users, new_account):
    return new_account(shared_server, next(unused_users))


@pytest.fixture
def new_server(tmp_path):
    """Starts a server of the story's own: with these users, and settings as keywords."""
    servers, numbers = [], itertools.count()

    def start(*users, **env):
        servers.append(Server(tmp_path / f"base{next(numbers)}", list(users), **env))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def odd_disk(tmp_path_factory):
    """A library that makes the server's disk lack something."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("odd_disk") / "odd_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, Path(__file__).with_name("odd_disk.c"), "-ldl"], check=True)
    return str(library)


@pytest.fixture
def new_proxy():
    """Makes a `Proxy` in front of an account's server."""
    proxies = []

    def make(account):
        proxies.append(Proxy(account.server))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def proxy(account, new_proxy):
    return new_proxy(account)


@pytest.fixture
def ankipi():
    """Runs a command of ankipi on the data folder of a server; its output."""
    def run(server, *args):
        ended = subprocess.run([*command(official=False), *args], env=server.env, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, f"{args}: {ended.stdout} {ended.stderr}"
        return ended.stdout

    return run
