"""What is shipped beside the binary: init scripts, units, man page, completion."""

import os
import re
import shutil
import subprocess
import tempfile
import time
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
            *(f"packages/deb/{name}" for name in ("postinst", "prerm", "postrm")), "packages/ipk/postinst", "packages/ipk/prerm"]),
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
        assert service("start") == 0
        wait_for("listens on")
        assert service("status") == 0
        assert (root / "base/anna").stat().st_uid == (root / "conf").stat().st_uid != 0
        assert service("reload") == 0
        wait_for("anew")
        assert service("stop") == 0
        assert "stopping" in (root / "log").read_text() and service("status") == 3
        assert service("nonsense") == 2
    finally:
        service("stop")
        shutil.rmtree(root)


@pytest.mark.parametrize("init, marks, files", [
    ("systemd", ["lib/systemd/system", "etc/init.d"], ["usr/local/bin/ankipi", "etc/systemd/system/ankipi.service", "etc/ankipi.conf"]),
    ("openwrt", ["etc/rc.common", "etc/init.d"], ["usr/bin/ankipi", "etc/init.d/ankipi", "etc/config/ankipi"]),
    ("openrc", ["sbin/openrc-run", "etc/init.d"], ["usr/bin/ankipi", "etc/init.d/ankipi", "etc/conf.d/ankipi"]),
    ("sysvinit", ["etc/init.d"], ["usr/bin/ankipi", "etc/init.d/ankipi", "etc/ankipi.conf"])])
def test_the_archive_installs_what_the_init_system_there_needs(init, marks, files, tmp_path):
    archive, root = tmp_path / "archive", tmp_path / "root"
    shutil.copytree(CROSS / "init", archive / "init")
    shutil.copy(CROSS / "packages/install.sh", archive)
    shutil.copy(command(official=False)[0], archive / "ankipi")
    for mark in marks:
        (root / mark).mkdir(parents=True)

    def install(*options: str) -> str:
        env = {"PATH": os.environ["PATH"], "DESTDIR": str(root)}
        return subprocess.run([archive / "install.sh", *options], env=env, capture_output=True, text=True, check=True).stdout

    def installed() -> list[str]:
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    assert "by hand" in install()
    assert installed() == sorted(files)
    settings, service = root / files[2], (root / files[1]).read_text()
    assert f"/{files[0]}" in service and "\nUser=ankipi\n" in service or init != "systemd"
    assert (settings.stat().st_mode & 0o777 == 0o600) == (init == "openwrt")
    settings.write_text(settings.read_text() + "# mine\n")
    install()
    assert "# mine" in settings.read_text()
    install("--remove")
    assert installed() == [files[2]]


def test_the_openwrt_script_hands_its_settings_over(tmp_path):
    """procd itself is on routers only; this is what it would be told."""
    stubs = """
        config_load() { :; }
        config_get() { eval "$1=\\"\\${uci_$3:-$4}\\""; }
        config_get_bool() { config_get "$@"; }
        procd_open_instance() { :; }
        procd_close_instance() { :; }
        procd_set_param() { echo "set $*"; }
        procd_append_param() { echo "append $*"; }
        chown() { :; }
    """
    settings = f"uci_enabled=1 uci_sync_base={tmp_path}/data uci_sync_port=8090 uci_sync_user1='anna:pass word'"
    script = f"{stubs}\n. {CROSS}/init/openwrt/ankipi.init\n{settings}\nstart_service"
    said = subprocess.run(["dash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert f"set env SYNC_BASE={tmp_path}/data" in said and "append env SYNC_PORT=8090" in said
    assert "append env SYNC_USER1=anna:pass word" in said and "SYNC_HOST" not in said, said
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    off = subprocess.run(["dash", "-c", f"{stubs}\n. {CROSS}/init/openwrt/ankipi.init\nstart_service"], capture_output=True, text=True)
    assert off.returncode == 1 and "switched off" in off.stderr


def test_the_settings_of_openwrt_are_those_of_the_program():
    known = subprocess.run([*command(official=False), "serve", "--help"], capture_output=True, text=True).stdout
    script = (CROSS / "init/openwrt/ankipi.init").read_text()
    for key in re.findall(r"\b(?:max_)?sync_[a-z_]+\b", script.split("for key in")[1].split("do")[0]):
        assert key.upper() in known, key
