"""Stories of operation: proxies, set-ups, commands, signals. They use the devices and servers of the stories in tests/real."""

import importlib.util
import sys
from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[1] / "real"
sys.path.insert(0, str(REAL))

spec = importlib.util.spec_from_file_location("real_conftest", REAL / "conftest.py")
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
globals().update({name: value for name, value in vars(real).items() if not name.startswith("__")})

from browser import Browser  # noqa: E402: tests/real must be on the path
from proxies import Caddy, Nginx, program  # noqa: E402


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all stories: it takes seconds to start."""
    running = Browser(program("chromium", "chromium"))
    yield running
    running.stop()


@pytest.fixture
def reverse_proxy(tmp_path):
    """Starts nginx or Caddy with a configuration of the story's own, in a folder of its own."""
    running = []

    def start(kind, *args, **kwargs):
        path = program(kind.program, kind.package)
        running.append(kind(path, tmp_path / f"{kind.program}{len(running)}", *args, **kwargs))
        return running[-1]

    yield start
    for proxy in running:
        proxy.stop()


@pytest.fixture
def nginx(reverse_proxy):
    return lambda *args, **kwargs: reverse_proxy(Nginx, *args, **kwargs)


@pytest.fixture
def caddy(reverse_proxy):
    return lambda *args, **kwargs: reverse_proxy(Caddy, *args, **kwargs)
