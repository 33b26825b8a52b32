"""Programs of Debian that stories use."""

import shutil
import subprocess

import pytest

PLACES = "/usr/sbin:/sbin:/usr/lib/openssh"


def program(name: str, package: str, give_up=pytest.skip) -> str:
    """Where a Debian program is; installed now if it is missing and we may. Otherwise the story ends with `give_up`."""
    path = shutil.which(name) or shutil.which(name, path=PLACES)
    if path is None:
        try:
            subprocess.run(["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *package.split()], check=True)
        except (OSError, subprocess.CalledProcessError) as err:
            give_up(f"{name} is not here and could not be installed (apt-get install {package}): {err}")
        path = shutil.which(name) or shutil.which(name, path=PLACES)
    return path
