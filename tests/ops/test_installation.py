"""Commands mean the installed server: its config file, or the data folder of the server that runs."""

import hashlib
import re
import subprocess

import pytest
from anki.errors import SyncError

from server import command, phc
from wire import request


def ankipi(*args, **env):
    base_env = {"PATH": "/usr/bin:/bin", "ANKIPI_CONFIG": ""}
    return subprocess.run([*command(official=False), *args], env=base_env | env, input="secret\n", capture_output=True, text=True)


def test_the_config_file_of_the_installation_names_the_folder(tmp_path):
    base = tmp_path / "data"
    config = tmp_path / "ankipi.conf"
    config.write_text(f"SYNC_BASE={base}\n")
    config.chmod(0o600)
    added = ankipi("user", "add", "me", ANKIPI_CONFIG=str(config))
    assert added.returncode == 0 and f"the account is in {base}/users" in added.stdout, added
    assert f"No server runs on {base} yet" in added.stdout
    assert f"SYNC_BASE={base}" in ankipi("config", ANKIPI_CONFIG=str(config)).stdout
    # An option names another file, and beats what is in it.
    listed = ankipi("user", "list", "--config", str(config), ANKIPI_CONFIG="/nonexistent")
    assert "me " in listed.stdout, listed
    other = ankipi("user", "list", "--base", str(tmp_path), ANKIPI_CONFIG=str(config))
    assert f"There is no account in {tmp_path}" in other.stdout, other


def test_a_command_without_a_folder_means_the_running_server(new_server, tmp_path):
    server = new_server()
    home = tmp_path / "home"
    home.mkdir()
    # Other tests may have a server, too: then the command must not guess.
    ended = ankipi("user", "add", "new", HOME=str(home))
    if ended.returncode == 1:
        assert "several servers run on this machine" in ended.stderr and str(server.base) in ended.stderr, ended
        assert "--base" in ended.stderr
    else:
        assert f"using {server.base}, the data folder of the running server" in ended.stderr, ended
        assert (server.base / "users").is_file()
    assert not list(home.iterdir())


def test_a_missing_folder_is_an_error_and_an_empty_one_is_said(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    for words in (["check"], ["status"], ["backup", "list"], ["backup", "list", "anna"], ["backup", "make"], ["user", "list"],
                  ["device", "list"], ["device", "revoke", "anna", "--all"], ["restore", "anna", "1"], ["export", "anna", "x.colpkg"]):
        ended = ankipi(*words, "--base", nowhere)
        assert ended.returncode == 1 and f"no data folder {nowhere}" in ended.stderr and "--base DIR" in ended.stderr, (words, ended)
        assert not (tmp_path / "nowhere").exists()
    for words in (["check"], ["backup", "list"]):
        ended = ankipi(*words, "--base", str(tmp_path))
        assert ended.returncode == 0 and "Nothing is stored" in ended.stdout, ended


def test_exit_codes_are_those_that_the_help_tells(tmp_path, new_server, new_account):
    told = ankipi("--help").stdout
    assert "Commands end with 0 if all is well, with 1" in told and "with 2 if the command line is wrong" in told
    base = ["--base", str(tmp_path)]
    wrong = [["chek"], ["check", "--dep"], ["check", "a", "b"], ["restore", "anna"], ["restore", "anna", "x"], ["user", "add"],
             ["device", "revoke", "anna"], ["backup", "make", "--keep", "0"], ["doctor", "here"], ["status", "now"]]
    for words in wrong:
        ended = ankipi(*words, *base)
        assert ended.returncode == 2 and ended.stderr.startswith("ankipi: "), (words, ended)
    for words in (["status"], ["restore", "anna", "1"], ["user", "remove", "anna"], ["doctor", "http://127.0.0.1:1/"]):
        ended = ankipi(*words, *base)
        assert ended.returncode == 1, (words, ended)
    server = new_server("anna:" + phc("secret"), PASSWORDS_HASHED="1")
    new_account(server, "anna", "secret").two_devices()
    for words in (["status"], ["check"], ["user", "list"], ["device", "list"], ["backup", "list"], ["doctor", server.url]):
        ended = ankipi(*words, *(["--base", str(server.base)] if words[0] != "doctor" else []))
        assert ended.returncode == 0, (words, ended)


def test_devices_of_a_plain_setting_are_known_to_share_a_key(new_server, new_account):
    """SYNC_USER1 is in the environment of the server alone."""
    server = new_server("anna:secret")
    desk, _ = new_account(server, "anna", "secret").two_devices()
    base = ["--base", str(server.base)]
    listed = ankipi("user", "list", *base)
    assert listed.returncode == 0 and "anna" in listed.stdout and "settings" in listed.stdout, listed
    revoked = ankipi("device", "revoke", "anna", "--all", *base)
    assert revoked.returncode == 1 and "share one key" in revoked.stderr and "change that password" in revoked.stderr, revoked
    assert "share one key" in ankipi("device", "list", *base).stdout
    assert "share one key" in ankipi("device", "list", "anna", *base).stdout
    desk.sync()
    # Without the server nobody knows whose account it is, but nothing is said to be done that is not.
    server.stop()
    revoked = ankipi("device", "revoke", "anna", "--all", *base)
    assert revoked.returncode == 1 and "nothing was changed" in revoked.stderr, revoked


def test_the_official_key_of_an_account_is_said_to_go_on_working(new_server, new_account):
    server = new_server("anna:" + phc("secret"), PASSWORDS_HASHED="1", SYNC_OFFICIAL_KEYS="yes")
    account = new_account(server, "anna", "secret")
    account.two_devices()
    key = hashlib.sha1(f"anna:{server.env['SYNC_USER1'].partition(':')[2]}".encode()).hexdigest()
    base = ["--base", str(server.base)]
    assert "the key of Anki's own server" in ankipi("device", "list", "anna", *base).stdout
    revoked = ankipi("device", "revoke", "anna", "--all", *base)
    assert revoked.stdout == "all devices of anna (2) have to log in again\n", revoked
    assert revoked.returncode == 1 and "goes on working" in revoked.stderr and "ankipi hash-password" in revoked.stderr, revoked
    assert request(account, "meta", {"v": 11, "cv": "anki,26.9.3,linux"}, key).status == 200


def test_devices_are_listed_with_time_and_address_of_their_last_use(new_server, new_account):
    server = new_server("anna:" + phc("secret"), PASSWORDS_HASHED="1")
    desk, phone = new_account(server, "anna", "secret").two_devices()
    keys = server.base / "anna/keys"
    noted = keys.read_bytes()
    desk.sync()
    assert keys.read_bytes() == noted, "a sync without changes writes"
    base = ["--base", str(server.base)]
    listed = ankipi("device", "list", "anna", *base).stdout
    lines = re.findall(r"^anna  ([0-9a-f]{8})  [\d-]{10}  [\d-]{10} \d\d:\d\d  127\.0\.0\.1 +26\.09\.3", listed, re.MULTILINE)
    assert len(lines) == 2 and lines[0] != lines[1], listed
    # Another hour, another address: noted by the next sync.
    keys.write_text(re.sub(r",\d+,127\.0\.0\.1", ",1700000000,192.0.2.7", keys.read_text()))
    assert "192.0.2.7" in ankipi("device", "list", *base).stdout
    server.stop()
    server.start()
    desk.sync()
    listed = ankipi("device", "list", *base).stdout
    assert listed.count("192.0.2.7") == 1 and listed.count("127.0.0.1") == 1, listed
    assert ankipi("device", "revoke", "anna", "--all", *base).stdout.startswith("all devices of anna (2)")
    with pytest.raises(SyncError):
        phone.try_sync()


def test_what_config_prints_is_a_config_file_for_shells_too(tmp_path):
    settings = {"SYNC_BASE": str(tmp_path / "it's here"), "SYNC_ALLOW": "127.0.0.0/8 10.0.0.0/8", "SYNC_CORS_ORIGINS": "https://a.example, https://b.example",
                "SYNC_SESSION_SECS": "7"}
    printed = ankipi("config", **settings)
    assert printed.returncode == 0, printed
    file = tmp_path / "ankipi.conf"
    file.write_text(printed.stdout)
    sourced = subprocess.run(["sh", "-c", f". {file}; export SYNC_BASE SYNC_ALLOW SYNC_CORS_ORIGINS; env -0"], capture_output=True, text=True, check=True)
    assert settings.items() - {("SYNC_SESSION_SECS", "7")} <= {tuple(line.split("=", 1)) for line in sourced.stdout.split("\0") if line}
    values = {line for line in printed.stdout.splitlines() if not line.startswith("#")}
    assert values == {line for line in ankipi("config", "--config", str(file)).stdout.splitlines() if not line.startswith("#")}


@pytest.mark.parametrize("setting", ["SYNC_SESSION_SECS=0", "SYNC_BASE_PATH=a b", "SYNC_BASE_PATH=/ü", "SYNC_BASE_PATH=/a?b"])
def test_settings_that_would_refuse_every_sync_are_refused(setting):
    said = ankipi("config", SYNC_BASE="/nowhere", **dict([setting.split("=")]))
    assert said.returncode == 1 and setting in said.stderr, said


def test_an_account_in_the_file_that_a_setting_beats_is_not_said_to_log_in(new_server):
    server = new_server("anna:" + phc("secret"), PASSWORDS_HASHED="1")
    base = ["--base", str(server.base)]
    for words in (["user", "add", "anna"], ["user", "passwd", "anna"]):
        said = ankipi(*words, *base)
        assert said.returncode == 0 and "has no effect while a SYNC_USERn names anna" in said.stdout, said
        assert "can log in" not in said.stdout and "log in again" not in said.stdout, said
    assert "bob can log in now" in ankipi("user", "add", "bob", *base).stdout
