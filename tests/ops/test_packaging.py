"""What is shipped beside the binary: init scripts, units, man page, completion."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

import pytest

from proxies import program
from server import REPO, command, free_port

CROSS = REPO / "cross"


def test_the_man_page_is_in_step_with_the_help():
    made = subprocess.run([CROSS / "man/make", command(official=False)[0]], capture_output=True, text=True, check=True).stdout
    assert (CROSS / "man/ankipi.1").read_text() == made, "cross/man/make target/release/ankipi > cross/man/ankipi.1"


@pytest.mark.parametrize("shell, scripts", [
    ("sh", ["init/openrc/ankipi", "init/sysvinit/ankipi", "boards/init", "boards/rcS", "packages/install.sh",
            *(f"packages/deb/{name}" for name in ("postinst", "prerm", "postrm")), "packages/openwrt/postinst", "packages/openwrt/prerm",
            "packages/home-assistant/run.sh", "packages/alpine/ankipi.pre-install"]),
    ("dash", ["init/openwrt/ankipi.init", "boards/commands", "../tests/ops/openwrt/functions.sh", "../tests/ops/openwrt/rc.common"]),
    ("bash", ["completion/ankipi.bash", "man/make",
              *sorted(str(path.relative_to(CROSS)) for path in CROSS.rglob("*.sh")
                      if path.name != "install.sh" and ".tools" not in path.parts)])])
def test_the_scripts_pass_shellcheck(shell, scripts):
    checker = [program("shellcheck", "shellcheck"), "--external-sources", "--shell", shell]
    checked = subprocess.run([*checker, *(CROSS / script for script in scripts)], cwd=REPO, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_unit_is_sound_and_confined(tmp_path):
    analyze = program("systemd-analyze", "systemd")
    unit = (CROSS / "init/systemd/ankipi.service").read_text()
    # What systemd puts into the environment does not change with a signal.
    assert "\nEnvironmentFile=" in unit and "\nExecReload=" not in unit, "a reload would change nothing and report success"
    # Neither the binary nor its man page is installed here.
    unit = unit.replace("/usr/bin/ankipi", command(official=False)[0]).replace("Documentation=man:ankipi(1)\n", "")
    (tmp_path / "ankipi.service").write_text(unit)
    shutil.copy(CROSS / "init/systemd/ankipi.socket", tmp_path)
    verified = subprocess.run([analyze, "verify", tmp_path / "ankipi.service", tmp_path / "ankipi.socket"], capture_output=True, text=True)
    assert verified.returncode == 0 and not verified.stderr, verified.stderr
    rated = subprocess.run([analyze, "security", "--offline=true", tmp_path / "ankipi.service"], capture_output=True, text=True).stdout
    exposure = float(re.search(r"exposure level for ankipi.service: ([\d.]+)", rated).group(1))
    assert exposure < 2.0, rated


def test_completion_knows_commands_and_options():
    def complete(*words: str) -> list[str]:
        script = (f"source {CROSS}/completion/ankipi.bash; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($#-1)); _ankipi; "
                  "printf '%s\\n' \"${COMPREPLY[@]}\"")
        ended = subprocess.run(["bash", "-c", script, "bash", command(official=False)[0], *words], capture_output=True, text=True, check=True)
        assert not ended.stderr, ended.stderr
        return ended.stdout.split()

    assert complete("st") == ["status"]
    assert complete("user", "pa") == ["passwd"]
    assert {"list", "revoke"} <= set(complete("device", ""))
    assert "--deep" in complete("check", "--d") and "--user" in complete("doctor", "--u")
    # Behind options, whose values may hold slashes.
    assert complete("--base", "/var/lib/x", "user", "r") == ["remove"]
    assert "--deep" in complete("--base", "/var/lib/x", "check", "--d")


@pytest.mark.parametrize("tools", ["dpkg", "busybox"])
def test_the_sysvinit_script_starts_reloads_and_stops(tools, tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can act as another user")
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    if tools == "busybox":
        subprocess.run([program("busybox", "busybox-static"), "--install", "-s", tmp_path], check=True)
        path = str(tmp_path)
    else:
        program("start-stop-daemon", "dpkg")
    root, port = Path(tempfile.mkdtemp(prefix="ankipi-init-")), free_port()
    root.chmod(0o755)
    shutil.copy(command(official=False)[0], root / "ankipi")
    (root / "conf").write_text(f"SYNC_USER1=anna:secret\nSYNC_HOST=127.0.0.1\nSYNC_PORT={port}\n")
    shutil.chown(root / "conf", "nobody")
    (root / "conf").chmod(0o600)
    env = {"PATH": path, "ANKIPI_BIN": f"{root}/ankipi", "ANKIPI_CONFIG": f"{root}/conf", "ANKIPI_BASE": f"{root}/base",
           "ANKIPI_USER": "nobody", "ANKIPI_PIDFILE": f"{root}/pid", "ANKIPI_LOG": f"{root}/log"}

    def service(verb: str) -> int:
        return subprocess.run([CROSS / "init/sysvinit/ankipi", verb], env=env, stdout=subprocess.DEVNULL).returncode

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in (root / "log").read_text():
            assert time.monotonic() < deadline, (root / "log").read_text()
            time.sleep(0.01)  # between two looks

    try:
        assert service("status") == 3
        assert service("start") == 1, "it began a data folder by itself"
        assert not (root / "base").exists()
        subprocess.run([root / "ankipi", "init", root / "base"], check=True)
        assert service("start") == 0
        wait_for("listens on")
        assert service("status") == 0
        assert (root / "base/anna").stat().st_uid == (root / "conf").stat().st_uid != 0
        assert service("reload") == 0
        wait_for("reloaded")
        assert service("stop") == 0
        assert "stopping" in (root / "log").read_text() and service("status") == 3
        assert service("nonsense") == 2
    finally:
        service("stop")
        shutil.rmtree(root)


LOCAL = ["usr/local/bin/anki-sync-server", "usr/local/share/man/man1/ankipi.1", "usr/local/share/bash-completion/completions/ankipi",
         "etc/systemd/system/ankipi.socket"]
SHARED = ["usr/bin/anki-sync-server", "usr/share/man/man1/ankipi.1", "usr/share/bash-completion/completions/ankipi", "etc/logrotate.d/ankipi"]


@pytest.mark.parametrize("init, marks, files, extras", [
    ("systemd", ["lib/systemd/system", "etc/init.d"], ["usr/local/bin/ankipi", "etc/systemd/system/ankipi.service", "etc/ankipi.conf"], LOCAL),
    ("openwrt", ["etc/rc.common", "etc/init.d"], ["usr/bin/ankipi", "etc/init.d/ankipi", "etc/config/ankipi"], SHARED[:1]),
    ("openrc", ["sbin/openrc-run", "etc/init.d"], ["usr/bin/ankipi", "etc/init.d/ankipi", "etc/conf.d/ankipi"], SHARED),
    ("sysvinit", ["etc/init.d"], ["usr/bin/ankipi", "etc/init.d/ankipi", "etc/ankipi.conf"], SHARED)])
def test_the_archive_installs_what_the_init_system_there_needs(init, marks, files, extras, tmp_path):
    archive, root = tmp_path / "archive", tmp_path / "root"
    shutil.copytree(CROSS / "init", archive / "init")
    for name in ("packages/install.sh", "man/ankipi.1", "completion/ankipi.bash"):
        shutil.copy(CROSS / name, archive)
    shutil.copy(command(official=False)[0], archive / "ankipi")
    for mark in marks:
        (root / mark).mkdir(parents=True)

    def install(*options: str) -> str:
        env = {"PATH": os.environ["PATH"], "DESTDIR": str(root)}
        return subprocess.run([archive / "install.sh", *options], env=env, capture_output=True, text=True, check=True).stdout

    def installed() -> list[str]:
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    assert "by hand" in install()
    assert installed() == sorted(files + extras)
    settings, service = root / files[2], (root / files[1]).read_text()
    assert f"/{files[0]}" in service and "\nUser=ankipi\n" in service or init != "systemd"
    assert (settings.stat().st_mode & 0o777 == 0o600) == (init == "openwrt")
    settings.write_text(settings.read_text() + "# mine\n")
    install()
    assert "# mine" in settings.read_text()
    install("--remove")
    assert installed() == [files[2]]


def test_a_log_that_has_grown_is_rotated_while_the_server_writes_on(tmp_path):
    rotate = program("logrotate", "logrotate")
    log, rules = tmp_path / "ankipi.log", tmp_path / "rules"
    rules.write_text((CROSS / "init/logrotate/ankipi").read_text().replace("/var/log/ankipi.log", str(log)))
    rules.chmod(0o644)

    def rotated() -> list[str]:
        subprocess.run([rotate, "--state", tmp_path / "state", rules], check=True)
        return sorted(path.name for path in tmp_path.glob("ankipi.log.*"))

    with open(log, "a") as server:
        server.write("x" * 1000 + "\n")
        server.flush()
        assert rotated() == []
        server.write("x" * 1_100_000 + "\n")
        server.flush()
        assert rotated() == ["ankipi.log.1.gz"]
        server.write("after\n")
        server.flush()
        assert log.read_text() == "after\n"


def make_apk(tmp_path) -> Path:
    """A package with all that ours have: folders, files of several lengths, a link, a script."""
    root, script, apk = tmp_path / "root", tmp_path / "script", tmp_path / "small.apk"
    for name, content in {"usr/bin/program": b"x" * 70_000, "etc/config/empty": b"", "etc/config/short": b"option\n"}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o644)
    (root / "usr/bin/alias").symlink_to("program")
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    script.write_text("#!/bin/sh\nexit 0\n")
    info = ["name=small", "version=1.2.3-r4", "arch=mips_24kc", "description=Small", "license=MIT", "build-time=1700000000",
            f"post-install={script}"]
    subprocess.run(["python3", CROSS / "packages/openwrt/adb.py", apk, root, *info], check=True)
    return apk


def test_apk_packages_are_those_that_apk_tools_took(tmp_path):
    """apk-tools 3 is in no package of Debian or PyPI. This is the sum of what its release 3.0.6 verified, dumped as its own `mkpkg`
    writes it, and installed. Who changes the writer has to ask it again: cross/checks/openwrt.sh with APK."""
    content = make_apk(tmp_path).read_bytes()
    assert content[:4] == b"ADBd"
    assert hashlib.sha256(zlib.decompress(content[4:], wbits=-15)).hexdigest() == "458288567987ea56461463229790372e3282071375264c809c3bae2df59fece4"


def test_the_add_on_of_home_assistant_makes_its_accounts(tmp_path):
    program("jq", "jq")
    tools, base = tmp_path / "bin", tmp_path / "data/ankipi"
    tools.mkdir()
    # Without arguments it would serve.
    (tools / "ankipi").write_text(f"#!/bin/sh\n[ $# = 0 ] || exec {command(official=False)[0]} \"$@\"\n")
    (tools / "ankipi").chmod(0o755)

    def start(*users: tuple[str, str]) -> None:
        (tmp_path / "options.json").write_text(json.dumps({"users": [{"name": name, "password": password} for name, password in users]}))
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "SYNC_BASE": str(base), "ANKIPI_OPTIONS": str(tmp_path / "options.json")}
        subprocess.run([CROSS / "packages/home-assistant/run.sh"], env=env, check=True, capture_output=True)

    start(("anna", "pass \\word"))
    first = (base / "users").read_text()
    assert "anna" in first
    # An unchanged password stays as it is: a new hash would log out all devices.
    start(("anna", "pass \\word"), ("bob", "geheim"))
    assert first.splitlines()[-1] in (base / "users").read_text() and "bob" in (base / "users").read_text()
    start(("anna", "another"), ("bob", "geheim"))
    assert first.splitlines()[-1] not in (base / "users").read_text()


def start_as_openwrt_does(tmp_path, options: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs start_service of the OpenWrt script with these options. procd itself is on routers only; what it would be told is
    printed."""
    calls = "\n".join(f"option_cb {name} {shlex.quote(value)}" for name, value in options.items())
    values = "\n".join(f"uci_{name}={shlex.quote(value)}" for name, value in options.items())
    stubs = f"""
        config_get() {{ eval "$1=\\"\\${{uci_$3:-$4}}\\""; }}
        config_get_bool() {{ config_get "$@"; }}
        procd_open_instance() {{ :; }}
        procd_close_instance() {{ :; }}
        procd_set_param() {{ echo "set $*"; }}
        procd_add_reload_trigger() {{ :; }}
        procd_add_restart_mount_trigger() {{ echo "restarts with $*"; }}
        chown() {{ echo "chown $*"; }}
        logger() {{ echo "log $*"; }}
        {values}
        . {CROSS}/init/openwrt/ankipi.init
        CONF={tmp_path}/etc/ankipi.conf
        config_load() {{
            {calls or ':'}
        }}
        reset_cb() {{ :; }}
        start_service
        outcome=$?
        service_triggers
        exit "$outcome"
    """
    return subprocess.run(["dash", "-c", stubs], capture_output=True, text=True)


def test_the_openwrt_script_hands_its_settings_over(tmp_path):
    options = {"enabled": "1", "user": "ankipi", "sync_base": f"{tmp_path}/it's here", "sync_port": "8090",
               "sync_prot": "1", "sync_user1": "anna:password"}
    without_its_disk = start_as_openwrt_does(tmp_path, options)
    assert without_its_disk.returncode == 1 and f"ankipi init {tmp_path}/it's here" in without_its_disk.stderr
    assert not (tmp_path / "it's here").exists()
    (tmp_path / "it's here").mkdir()
    started = start_as_openwrt_does(tmp_path, options)
    assert started.returncode == 0, started.stderr
    conf = tmp_path / "etc/ankipi.conf"
    for line in (f"set command /usr/bin/ankipi serve --config {conf}", "set user ankipi", "set no_new_privs 1", "set env SYNC_LOG_SPLIT=yes SYNC_REQUIRE_DATA=yes"):
        assert line in started.stdout.splitlines(), started.stdout
    assert f"chown -R ankipi {tmp_path}/it's here" in started.stdout
    assert "option sync_user1 is ignored" in started.stdout and "password" not in conf.read_text() + started.stdout
    assert (tmp_path / "it's here").stat().st_mode & 0o777 == 0o700
    assert f"restarts with {tmp_path}/it's here" in started.stdout
    # The program reads what the script wrote, and names the option that is no setting.
    shown = subprocess.run([*command(official=False), "config", "--config", conf], env={}, capture_output=True, text=True)
    folder = shlex.quote(f"{tmp_path}/it's here").replace("""'"'"'""", r"'\''")
    assert f"SYNC_BASE={folder}\n" in shown.stdout and "SYNC_PORT=8090\n" in shown.stdout, shown.stdout
    assert "did you mean SYNC_PORT?" in shown.stdout + shown.stderr


@pytest.mark.parametrize("options, advice", [
    ({"sync_base": "/mnt"}, "uci set ankipi.main.enabled=1"), ({"enabled": "1"}, "uci set ankipi.main.sync_base=")])
def test_the_openwrt_script_says_what_is_missing(options, advice, tmp_path):
    started = start_as_openwrt_does(tmp_path, options)
    assert started.returncode == 1 and advice in started.stderr, started
