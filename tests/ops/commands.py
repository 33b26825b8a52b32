"""Runs ankipi's commands on the data folder of a server."""

import subprocess

from server import command


def run(server, *args: str, input: str = "") -> subprocess.CompletedProcess:
    env = server.env | {"COLUMNS": "80"}
    return subprocess.run([*command(official=False), *args], env=env, input=input, capture_output=True, text=True, timeout=120)


def done(server, *args: str, input: str = "") -> str:
    """The output of a command that must succeed."""
    ended = run(server, *args, input=input)
    assert ended.returncode == 0, f"{args}: {ended.stdout} {ended.stderr}"
    return ended.stdout


def refused(server, *args: str, status: int = 1, input: str = "") -> str:
    """The output of a command that must fail."""
    ended = run(server, *args, input=input)
    assert ended.returncode == status, f"{args}: {ended.returncode} {ended.stdout} {ended.stderr}"
    return ended.stderr
