"""Drives real Anki clients of all ages through one server and prints a table of what worked.

    tests/matrix/run                    every release of the table (installs each on first use)
    tests/matrix/run --short            one client for each way in which clients sync
    tests/matrix/run 2.1.35 25.9.5      these releases
    tests/matrix/run --reference        against Anki's own server: are the stories true?

Every release has an account of its own and tells the same stories there, each with two devices or more, in processes of
their own. A story ends with all devices and a fresh download holding equal rows, and with the client's own database check
finding nothing on that download.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "real"))
VENVS = HERE.parent / ".matrix"
NEWEST = "26.9.3"


@dataclass(frozen=True)
class Release:
    version: str
    python: str
    """The protocol that it speaks."""
    protocol: int
    needs: tuple[str, ...] = ()
    """Part of --short: the first and the last of a way to sync."""
    short: bool = False


# What the releases of their time needed and did not pin.
OLD = ("protobuf<3.21", "urllib3<2")

RELEASES = [
    Release("2.1.25", "3.7", 10, ("ankirspy==2.1.25", *OLD), short=True),
    Release("2.1.28", "3.8", 10, OLD),
    Release("2.1.35", "3.8", 10, OLD, short=True),
    Release("2.1.40", "3.8", 10, OLD),
    Release("2.1.44", "3.8", 10, OLD),
    Release("2.1.49", "3.9", 10, OLD),
    Release("2.1.54", "3.9", 10),
    Release("2.1.56", "3.9", 10, short=True),
    Release("2.1.60", "3.9", 11),
    Release("2.1.66", "3.9", 11, short=True),
    Release("23.12", "3.9", 11),
    Release("24.11", "3.9", 11),
    Release("25.2.7", "3.9", 11),
    Release("25.9.5", "3.9", 11),
    Release(NEWEST, "3.11", 11, short=True),
]


def find_python(version: str) -> str | None:
    """The interpreter of that version: pyenv's, or one on the PATH."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for found in sorted(home.glob(f"versions/{version}.*/bin/python")):
        return str(found)
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return found
    return None


installing = threading.Lock()


def install(release: Release) -> Path:
    """The interpreter of a virtual environment with that release; made on first use, whole or not at all."""
    venv = VENVS / release.version
    wanted = " ".join([f"anki=={release.version}", *release.needs])
    installed = venv / "installed"
    with installing:
        if not installed.exists() or installed.read_text() != wanted:
            say(f"installing anki {release.version} for Python {release.python}")
            shutil.rmtree(venv, ignore_errors=True)
            subprocess.run([find_python(release.python), "-m", "venv", venv], check=True)
            pip = [venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *wanted.split()], check=True)
            installed.write_text(wanted)
    return venv / "bin/python"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Failed(Exception):
    """A check of a story failed."""


class Device:
    """A client in a process of its own. Calls go there: `device.add_note("front")`."""

    def __init__(self, python: Path, name: str, folder: Path, url: str, user: str):
        self.name = name
        folder.mkdir(parents=True)
        self.errors = open(folder / "stderr", "wb")
        command = [python, HERE / "device.py", folder / name, url, user, "secret"]
        # An account's devices need no HTTP proxy, and old clients would ask for one.
        env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env
        )

    def __getattr__(self, what: str):
        def call(*args):
            try:
                self.process.stdin.write(json.dumps({"do": what, "with": args}) + "\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                pass
            line = self.process.stdout.readline()
            if not line:
                tail = Path(self.errors.name).read_text(errors="replace")[-800:]
                raise Failed(f"{self.name} ended during {what}: {tail}")
            answer = json.loads(line)
            if "failed" in answer:
                raise Failed(f"{self.name}, {what}: {answer['failed']}")
            return answer["gave"]

        return call

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


class Household:
    """An account and its devices."""

    def __init__(self, release: Release, folder: Path, url: str, user: str):
        self.release, self.folder, self.url, self.user = release, folder, url, user
        self.devices: list[Device] = []

    def device(self, name: str, release: Release | None = None) -> Device:
        """A device that is logged in and empty."""
        python = install(release or self.release)
        device = Device(python, name, self.folder / f"{len(self.devices)}-{name}", self.url, self.user)
        self.devices.append(device)
        device.log_in()
        return device

    def close(self) -> None:
        for device in self.devices:
            device.close()


def expect(found, wanted, what: str) -> None:
    if found != wanted:
        raise Failed(f"{what}: {found!r} instead of {wanted!r}")


def expect_same(one: Device, other: Device) -> None:
    left, right = one.rows(), other.rows()
    for table in left:
        if left[table] != right[table]:
            differ = [row for row in left[table] if row not in right[table]]
            others = [row for row in right[table] if row not in left[table]]
            raise Failed(f"{table} of {one.name} and {other.name} differ: {differ[:3]} / {others[:3]}")


def sync(*devices: Device) -> None:
    for device in devices:
        expect(device.sync(), "nothing", f"what {device.name} needs beside a normal sync")


def settle(household: Household, *devices: Device) -> None:
    """Syncs all devices, and checks that they and a fresh device hold the same, undamaged collection."""
    sync(*devices * 2)
    fresh = household.device("fresh")
    fresh.sync()
    fresh.download()
    for device in devices:
        expect_same(device, fresh)
    sync(fresh)
    expect(fresh.check(), [], "what the database check of the fresh device finds")


class Stories:
    """The stories in their order. Each continues where the one before ended."""

    def __init__(self, household: Household):
        self.household = household

    def login(self) -> None:
        self.desk = self.household.device("desk")
        expect(self.desk.is_refused("wrong"), True, "that a wrong password is refused as one")
        self.desk.log_in()

    def upload(self) -> None:
        for front in ("one", "two", "three", "four", "five"):
            self.desk.add_note(front, "back", "Default", "first")
        self.desk.add_note("six ünï 日本 😀", "<b>back</b>", "Languages::Ünï", "a::b ü")
        needed = self.desk.sync()
        if needed not in ("upload", "full sync"):
            raise Failed(f"a new account asks for {needed}")
        self.desk.upload()
        sync(self.desk)

    def download(self) -> None:
        self.phone = self.household.device("phone")
        needed = self.phone.sync()
        if needed not in ("download", "full sync"):
            raise Failed(f"an empty device is asked for {needed}")
        self.phone.download()
        expect_same(self.desk, self.phone)
        settle(self.household, self.desk, self.phone)

    def changes(self) -> None:
        self.desk.add_note("seven", "from the desk", "New deck", "seven desk")
        self.desk.edit_note("one", "one, edited", "edited")
        self.desk.add_deck("Described", "what is in it")
        self.desk.set_new_per_day(33)
        self.desk.review(2)
        self.phone.add_note("eight", "from the phone")
        self.phone.edit_note("five", "five, edited", "phone")
        # Of another deck: two devices must not answer one card.
        self.phone.review(1, "Languages::Ünï")
        self.phone.set_css(".card { color: teal; }")
        sync(self.desk, self.phone, self.desk)
        expect_same(self.desk, self.phone)
        settle(self.household, self.desk, self.phone)

    def many(self) -> None:
        """More than one chunk, both ways."""
        for n in range(260):
            self.desk.add_note(f"many {n}", "x" * n)
        for n in range(130):
            self.phone.add_note(f"more {n}", "y" * n)
        settle(self.household, self.desk, self.phone)

    def deletions(self) -> None:
        self.desk.remove_note("two")
        self.desk.remove_deck("New deck")
        self.phone.remove_note("three")
        self.phone.remove_note("many 7")
        settle(self.household, self.desk, self.phone)

    def media(self) -> None:
        for name in ("hello.txt", "ünï 日本.txt", "gone.txt", "replaced.txt"):
            self.desk.put_media(name, "from the desk: " + name)
        for n in range(60):
            self.desk.put_media(f"file {n}.txt", f"contents {n} " * (n * 40 + 1))
        self.desk.sync_media()
        self.phone.sync_media()
        expect(self.phone.media(), self.desk.media(), "media of the phone")
        self.phone.remove_media("gone.txt")
        self.phone.put_media("replaced.txt", "by the phone")
        self.phone.put_media("phone.txt", "phone")
        self.phone.sync_media()
        self.desk.sync_media()
        self.desk.remove_media("file 1.txt")
        self.desk.put_media("file 2.txt", "replaced by the desk")
        self.desk.sync_media()
        self.phone.sync_media()
        expect(sorted(set(self.desk.media()) ^ set(self.phone.media())), [], "media of one device only")
        expect(self.desk.media(), self.phone.media(), "media of the desk")
        expect("gone.txt" in self.desk.media(), False, "that a deleted file is there")
        fresh = self.household.device("fresh")
        fresh.sync_media()
        expect(fresh.media(), self.desk.media(), "media of a fresh device")

    def one_way(self) -> None:
        """A change of the schema goes up whole, and the other device takes it."""
        self.desk.add_field("Extra")
        expect(self.desk.sync(), "full sync", "what the desk needs after a change of the schema")
        self.desk.upload()
        expect(self.phone.sync(), "full sync", "what the phone needs")
        self.phone.download()
        settle(self.household, self.desk, self.phone)

    def mixed(self) -> None:
        """A device with the newest release in the same account."""
        newest = self.household.device("newest", RELEASES[-1])
        newest.sync()
        newest.download()
        expect_same(self.desk, newest)
        newest.add_note("nine", "from the newest", "Deck of the newest", "newest")
        newest.edit_note("four", "four, edited by the newest")
        newest.set_new_per_day(44)
        self.desk.add_note("ten", "from the desk")
        self.desk.set_css(".card { color: navy; }")
        settle(self.household, self.desk, newest, self.phone)
        newest.remove_note("nine")
        self.desk.remove_note("ten")
        settle(self.household, newest, self.desk)
        for sender, receiver in ((self.desk, newest), (newest, self.desk)):
            sender.add_note(f"by {sender.name}", "before a full sync")
            sender.force_full_sync()
            expect(sender.sync(), "full sync", f"what {sender.name} needs")
            sender.upload()
            receiver.sync()
            receiver.download()
            expect_same(sender, receiver)
            settle(self.household, sender, receiver)
        newest.put_media("newest.txt", "newest")
        newest.sync_media()
        newest.put_media("file 3.txt", "replaced by the newest")
        newest.remove_media("file 4.txt")
        newest.sync_media()
        self.desk.sync_media()
        self.desk.put_media("file 5.txt", "replaced by the desk")
        self.desk.remove_media("file 6.txt")
        self.desk.sync_media()
        newest.sync_media()
        held = self.desk.media()
        expect(newest.media(), held, "media of the newest")
        expect([held.get(f"file {n}.txt") for n in (4, 6)], [None, None], "deleted files")
        expect(held["newest.txt"], "newest", "a file of the newest on the desk")
        # The newest release adds data to cards that older releases do not know.
        found = [line for line in newest.check() if not line.startswith("Added last review time")]
        expect(found, [], "what the check of the newest finds")


STORIES = ["login", "upload", "download", "changes", "many", "deletions", "media", "one_way", "mixed"]


def tell(release: Release, folder: Path) -> dict[str, str]:
    """Runs all stories with a release, on a server of its own. Returns the result of each.

    One server would see a wrong password from each release, all from one address, and make the last ones wait."""
    import server as servers  # reads REFERENCE when it is loaded

    folder /= release.version
    folder.mkdir()
    server = servers.Server(folder / "base", ["user:secret"])
    household = Household(release, folder, server.url, "user")
    stories = Stories(household)
    outcome: dict[str, str] = {}
    try:
        for story in STORIES:
            try:
                getattr(stories, story)()
                outcome[story] = "ok"
            except Failed as err:
                outcome[story] = str(err)
            except Exception:
                outcome[story] = traceback.format_exc()
            say(f"{release.version} {story}: {outcome[story]}")
            if outcome[story] != "ok" and story in ("login", "upload", "download"):
                break
    finally:
        household.close()
        server.stop()
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", help="versions as on PyPI")
    parser.add_argument("--short", action="store_true", help="one client for each way in which clients sync")
    parser.add_argument("--reference", action="store_true", help="against Anki's own server")
    parser.add_argument("--markdown", action="store_true", help="the table as in docs/clients.md")
    args = parser.parse_args()
    if unknown := set(args.releases) - {release.version for release in RELEASES}:
        parser.error(f"not in the table: {', '.join(unknown)}")
    wanted = [r for r in RELEASES if (r.version in args.releases if args.releases else r.short or not args.short)]
    runnable = [release for release in wanted if find_python(release.python)]
    if not find_python(RELEASES[-1].python):
        parser.error(f"the mixed households need Python {RELEASES[-1].python}")
    if args.reference:
        os.environ["REFERENCE"] = "1"
        sys.executable = str(install(RELEASES[-1]))
    folder = Path(tempfile.mkdtemp(prefix="ankipi-matrix-"))
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = {release: pool.submit(tell, release, folder) for release in runnable}
        outcomes = {release: job.result() for release, job in jobs.items()}
    return report(wanted, outcomes, args.markdown, folder)


def report(wanted: list[Release], outcomes: dict[Release, dict[str, str]], markdown: bool, folder: Path) -> int:
    def line(cells: list[str]) -> str:
        if markdown:
            return "| " + " | ".join(cells) + " |"
        return f"{cells[0]:<10}" + "".join(f"{cell:<11}" for cell in cells[1:])

    print(line(["client", "protocol", *STORIES]))
    if markdown:
        print("|" + "---|" * (len(STORIES) + 2))
    passed = failed = skipped = 0
    failures = []
    for release in wanted:
        outcome = outcomes.get(release)
        cells = [release.version, str(release.protocol)]
        if outcome is None:
            print(line([*cells, f"skipped: there is no Python {release.python} on this machine"]))
            skipped += len(STORIES)
            continue
        for story in STORIES:
            told = outcome.get(story)
            passed, failed = passed + (told == "ok"), failed + (told != "ok")
            cells.append("ok" if told == "ok" else "FAILED" if told else "not told")
            if told not in ("ok", None):
                failures.append(f"{release.version} {story}: {told}")
        print(line(cells))
    for failure in failures:
        print(failure)
    if failed:
        print(f"what the servers said is in {folder}/*/base.log")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    # A run that saw one protocol alone has not shown what it is for.
    unseen = {r.protocol for r in wanted} - {r.protocol for r in outcomes}
    if unseen:
        print(f"no client of protocol {unseen} could run")
    return 1 if failed or not passed or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
