"""Each command line of README and docs/ is run, as it is written but for names, folders and ports; or it is in NOT_RUN, which says
where else it is run, or why nowhere."""

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from account import Account
from commands import done
from proxies import program
from server import REPO, Server, command, free_port
from test_import import Old
from test_media import folder, put, sync_media

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]

# How a line begins: (the file that runs it, and what to find there), or why nothing here runs it.
NOT_RUN = {
    "tests/run": "it runs this",
    "tests/matrix/run": (".ci/run", "tests/matrix/run --short"),
    "cargo build --release": ("tests/run", "cargo build"),
    "cargo test": ("tests/run", "cargo test"),
    "cargo bench": "it takes minutes, and measures",
    "cargo install --git": ("cross/checks/cargo-install.sh", "cargo install"),
    "cross/packages/deb.sh": (".ci/run", "cross/packages/deb.sh"),
    "cross/packages/openwrt.sh": (".ci/run", "cross/packages/openwrt.sh"),
    "cross/packages/image.sh": (".ci/run", "cross/packages/image.sh"),
    "cross/packages/tarball.sh": ("cross/release.sh", "cross/packages/tarball.sh"),
    "cross/build.sh": ("cross/check.sh", "cross/build.sh"),
    "cross/release.sh": (".github/workflows/release.yml", "cross/release.sh"),
    "cross/boards/boot.sh": "it boots emulated machines for half an hour, as root",
    "cross/check.sh": (".ci/run", "cross/check.sh"),
    "cross/checks/": (".ci/run", "cross/checks/deb.sh"),
    "sudo apt install": ("cross/checks/deb.sh", "page_lines docs/install.md 'With a '"),
    "opkg install": ("tests/ops/test_ways_in.py", 'lines_of("docs/install.md", "On OpenWrt")'),
    "uci ": ("tests/ops/test_ways_in.py", 'lines_of("docs/install.md", "On OpenWrt")'),
    "service ankipi": ("tests/ops/test_ways_in.py", 'lines_of("docs/install.md", "On OpenWrt")'),
    "git archive": ("cross/release.sh", "git archive --prefix"),
    "cd cross/packages/arch": ("cross/checks/arch.sh", "makepkg --repackage"),
    "sudo systemctl enable": "it is systemd's; cross/checks/deb.sh looks at what it makes",
    "docker ": "it needs an engine with cgroups; cross/checks/image.sh runs what the image says, without one",
    "tar -xf ankipi": ("cross/checks/openwrt.sh", "install_archive"),
    "cd ankipi-*/": ("cross/checks/openwrt.sh", "install.sh"),
    "sudo systemctl reload nginx": "it is nginx's; tests/ops/proxies.py starts one",
    "systemctl edit": "it opens an editor",
    "certbot": "it needs a name of the internet",
    "update-ca-certificates": "it changes this machine; the stories set SSL_CERT_FILE instead",
    "ankipi doctor https://anki.lan/": ("tests/ops/test_https.py", '"doctor", nginx('),
    "ankipi-bench --board": "it measures boards",
}


def blocks():
    """The lines of each indented block, and each line between backquotes that is more than the name of a command."""
    for page in PAGES:
        lines, text = [], page.read_text()
        for line in [*text.splitlines(), ""]:
            if line.startswith("    ") and line.strip():
                lines.append(re.sub(r"\s+#\s.*", "", line.strip()))
            elif lines:
                yield page.name, lines
                lines = []
        first_words = "ankipi|systemctl|cargo|certbot|update-ca-certificates|cross/[a-z/-]+\\.sh|ankipi-bench"
        for line in re.findall(rf"`((?:sudo )?(?:{first_words})(?: [^`]*)?)`", text):
            if not re.fullmatch(r"ankipi(?: [a-z-]+){0,2}", line) and line != "update-ca-certificates -":
                yield page.name, [line]


def not_run(line: str):
    return next((why for begins, why in NOT_RUN.items() if line.startswith(begins)), None)


ALL = [(page, lines) for page, lines in blocks()]
RUN = [(page, lines) for page, lines in ALL if not all(not_run(line) for line in lines)]


def test_what_is_not_run_is_run_elsewhere_or_has_its_reason():
    written = [line for _, lines in ALL for line in lines]
    assert len(written) > 50
    for begins, why in NOT_RUN.items():
        assert any(line.startswith(begins) for line in written), f"no page names {begins!r} any more"
        if isinstance(why, tuple):
            assert why[1] in (REPO / why[0]).read_text(), f"{begins}: {why}"


class Installed:
    """An installation as packages make it: a config file that names the data folder, `ankipi` on the path, a service."""

    def __init__(self, root: Path, data: Path, stick: Path, old: Path):
        self.root, self.base, self.stick, self.old = root, root / "data", root / "stick", root / "old"
        shutil.copytree(data, self.base)
        shutil.copytree(stick, self.stick)
        shutil.copytree(old, self.old)
        self.official = root / "official"
        shutil.copytree(data, self.official)
        (root / "bin").mkdir()
        (root / "bin/ankipi").symlink_to(command(official=False)[0])
        self.config = root / "ankipi.conf"
        self.config.write_text(f"SYNC_BASE={self.base}\n")
        self.config.chmod(0o600)
        self.server = None
        self.env = {"PATH": f"{root}/bin:{os.environ['PATH']}", "HOME": str(root), "ANKIPI_CONFIG": str(self.config)}

    def start(self):
        self.server = Server(self.base, [])

    def stop(self):
        if self.server:
            self.server.stop()
            self.server = None

    def written_for_here(self, line: str) -> str:
        """The line with the names, folders and ports of this installation."""
        line = re.sub(r"^(?:\S+ ){5}(?= *ankipi)", "", line) if line.startswith("0 4 * * *") else line
        line = re.sub(r"^sudo ", "", line.strip())
        line = line.replace("user add NAME", "user add new").replace("cargo run --release", "ankipi")
        line = re.sub(r"(certs\.sh)", rf"\1 --dir {self.root}/certs", line)
        ids = re.findall(r"^anna +([0-9a-f]{8})", subprocess.run([self.root / "bin/ankipi", "device", "list"], env=self.env,
                                                                 capture_output=True, text=True).stdout, re.MULTILINE)
        url = self.server.url if self.server else "http://127.0.0.1:1/"
        line = line.replace("chown -R ankipi:", "chown -R root:").replace("import FILE.colpkg", f"import {self.stick}/anna.colpkg")
        old = next((old for begins, old in (("ankipi import", self.old), ("cp ", self.official)) if line.startswith(begins)), self.base)
        for name, here in (("/path/of/the/old/folder", old), ("/var/lib/ankipi", self.base),
                           ("/tmp/ankipi-demo", self.root / "demo"), ("/media/stick", self.stick),
                           ("/mnt/stick", self.stick), ("/mnt/new", self.stick), ("/etc/ankipi.conf", self.config), ("OTHER-HOST:ankipi", self.root / "elsewhere"), ("http://localhost:8080/", url), ("URL", url),
                           ("NAME", "anna"), ("NUMBER", "1"), ("5a0c4d12", ids[0] if ids else ""), ("cross/", f"{REPO}/cross/")):
            line = line.replace(name, str(here))
        return line

    def run(self, line: str) -> None:
        here = self.written_for_here(line)
        if here in ("systemctl stop ankipi", "systemctl start ankipi"):
            self.stop() if "stop" in here else self.start()
        elif re.fullmatch(r"[A-Z_]+=\S+", here):
            told = subprocess.run(["ankipi", "config"], env=self.env | dict([here.split("=", 1)]), capture_output=True, text=True)
            assert told.returncode == 0 and here in told.stdout.replace('"', "") and not told.stderr, (line, told)
        elif re.fullmatch(r"(?:[A-Z0-9_]+=\S+ )*ankipi", here):
            self.stop()
            self.starts(here)
        else:
            ended = subprocess.run(here, shell=True, env=self.env, cwd=self.root, input="secret\n", capture_output=True, text=True, timeout=60)
            assert ended.returncode == 0, (line, here, ended)

    def starts(self, line: str) -> None:
        port = free_port()
        env = self.env | {"SYNC_PORT": str(port), "SYNC_HOST": "127.0.0.1"}
        process = subprocess.Popen(f"exec env {line}", shell=True, env=env, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read() == b"ok\n"
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, (line, process.stderr.read())
                    time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        assert process.returncode == 0, line


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The data of anna, who uses two devices, with a backup; a package of it; and the folder of an ankisyncd."""
    root = tmp_path_factory.mktemp("docs")
    server = Server(root / "data", [])
    account = None
    try:
        done(server, "user", "add", "anna", "--rounds", "100000", input="secret\n")
        account = Account(server, "anna", "secret", root / "devices")
        desk, _ = account.two_devices()
        put(desk, "one.jpg", b"1")
        sync_media(desk)
        desk.add_note("what is replaced")
        desk.upload()
        (root / "stick/ankipi").mkdir(parents=True)
        done(server, "export", "anna", str(root / "stick/anna.colpkg"))
        collection, media = Path(desk.col.path), folder(desk)
        desk.close()
        Old(root / "old").add("bert", "secret", collection, media, 1)
    finally:
        if account:
            account.close()
        server.stop()
    return root


@pytest.fixture
def installed(template, tmp_path):
    installed = Installed(tmp_path, template / "data", template / "stick", template / "old")
    yield installed
    installed.stop()


@pytest.mark.parametrize("page, lines", RUN, ids=[f"{page}-{lines[0]}" for page, lines in RUN])
def test_the_lines_do_what_they_say(installed, page, lines):
    if not any(re.search(r"systemctl start|check --fix|^ankipi import|ankipi init|SYNC_BASE=|^ankipi$", line) for line in lines):
        installed.start()
    elif lines[0].startswith("sudo systemctl stop"):
        installed.start()
    if "certs.sh renew" in lines[0]:
        installed.run("cross/proxy/certs.sh anki.lan")
    if any(line.startswith("rsync") for line in lines):
        program("rsync", "rsync")
    for line in lines:
        if not not_run(line):
            installed.run(line)
    if "moving" in page:
        told = subprocess.run(["ankipi", "config"], env=installed.env, capture_output=True, text=True)
        assert f"SYNC_BASE={installed.stick}/ankipi" in told.stdout, told
    if lines[-1].startswith("rsync"):
        assert [path.suffix for path in (installed.root / "elsewhere").glob("anna-*")] == [".colpkg"]
