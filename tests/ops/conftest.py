"""Operation: what surrounds a server on a board. The server and the real client are those of tests/real."""

import importlib.util
import sys
from pathlib import Path

REAL = Path(__file__).resolve().parents[1] / "real"
sys.path.insert(0, str(REAL))
spec = importlib.util.spec_from_file_location("real_conftest", REAL / "conftest.py")
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)

new_server, new_account = real.new_server, real.new_account
pytest_configure, pytest_collection_modifyitems = real.pytest_configure, real.pytest_collection_modifyitems
