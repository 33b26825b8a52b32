"""A sync server in a folder of its own: ankipi, or with REFERENCE=1 Anki's own, which tells what the truth is."""

import base64
import ctypes
import hashlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

REFERENCE = os.environ.get("REFERENCE") == "1"
REPO = Path(__file__).resolve().parents[2]
ANKIPI = Path(os.environ.get("ANKIPI_BIN", REPO / "target/release/ankipi"))
START_SECS = 20
LIBC = ctypes.CDLL(None, use_errno=True)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def command(official: bool = REFERENCE) -> list[str]:
    if official:
        return [sys.executable, "-m", "anki.syncserver"]
    if not ANKIPI.is_file():
        raise FileNotFoundError(f"no server to test at {ANKIPI}: cargo build --release, or set ANKIPI_BIN or REFERENCE=1")
    return [str(ANKIPI)]


def phc(password: str, rounds: int = 1000) -> str:
    """The password as PASSWORDS_HASHED wants it. Few rounds: these passwords guard nothing."""
    salt = os.urandom(16)
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    text = [base64.b64encode(raw).decode().rstrip("=") for raw in (salt, digest)]
    return f"$pbkdf2-sha256$i={rounds},l=32${text[0]}${text[1]}"


def free_port() -> int:
    """Free on every address, since some servers listen on all."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return probe.getsockname()[1]


class Server:
    """One process. `users` are the values of SYNC_USER1 and so on, `open_files` is how many descriptors it may have. One that
    `obeys_modes` cannot read what its owner may not read, also if it is started by root."""

    running: "list[Server]" = []

    def __init__(self, base: Path, users: list[str], open_files: int = 0, obeys_modes: bool = False, **env: str):
        self.base, self.port, self.open_files, self.obeys_modes = base, free_port(), open_files, obeys_modes
        self.log_path = base.with_name(base.name + ".log")
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log_mark = 0
        self.official = REFERENCE
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SYNC_", "RUST_LOG"))}
        self.env |= {"NO_COLOR": "1", "ANKIPI_CONFIG": "", "SYNC_BASE": str(base), "SYNC_HOST": "127.0.0.1", "SYNC_PORT": str(self.port)}
        self.env |= {f"SYNC_USER{n}": user for n, user in enumerate(users, 1)} | env
        self.start()

    def start(self) -> None:
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command_line(), env=self.env, stdout=log, stderr=log,
                                            preexec_fn=self.restrict if self.open_files or self.obeys_modes else None)
        try:
            self.wait_until_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        Server.running.append(self)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECS
        while not self.healthy():
            assert self.process.poll() is None, f"the server ended at once:\n{self.log()}"
            assert time.monotonic() < deadline, f"the server did not get ready in {START_SECS} s:\n{self.log()}"
            time.sleep(0.01)  # between two questions; nothing is assumed to have happened by then

    def command_line(self) -> list[str]:
        return command(self.official)

    def restrict(self) -> None:
        if self.open_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files, self.open_files))
        if self.obeys_modes and os.geteuid() == 0:
            for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
                if LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                    raise OSError(ctypes.get_errno(), "prctl")

    def healthy(self) -> bool:
        try:
            # A path in front of everything is in front of this, too.
            return self.get(self.env.get("SYNC_BASE_PATH", "") + "/health")[0] == 200
        except OSError:
            return False

    def get(self, path: str, verb: str = "GET") -> tuple[int, bytes]:
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            conn.request(verb, path)
            answer = conn.getresponse()
            return answer.status, answer.read()
        finally:
            conn.close()

    def log(self) -> str:
        """What the server said since this test began."""
        with open(self.log_path, "rb") as log:
            log.seek(self.log_mark)
            return log.read().decode(errors="replace")

    def mark_log(self) -> None:
        self.log_mark = self.log_path.stat().st_size

    def power_cut(self) -> None:
        """Ends the process at whatever it is doing, and starts it again on the same folder and port."""
        self.process.kill()
        self.process.wait()
        Server.running.remove(self)
        self.start()

    def go_on_as(self, official: bool) -> None:
        """Stops, and starts as Anki's own server or as ankipi on the same folder and port."""
        self.stop()
        self.official = official
        self.start()

    def stop(self) -> None:
        if self not in Server.running:
            return  # the story stopped it
        Server.running.remove(self)
        crashed = self.process.poll()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"SIGTERM did not end the server:\n{self.log()}") from None
        assert crashed is None, f"the server crashed with {crashed}:\n{self.log()}"
        # The official server does not catch SIGTERM.
        assert status == 0 or self.official, f"SIGTERM ended the server with {status}:\n{self.log()}"
