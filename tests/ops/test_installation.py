"""Commands mean the installed server: its config file, or the data folder of the server that runs."""

import subprocess

from server import command


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
    for words in (["check"], ["status"], ["backup", "list"]):
        ended = ankipi(*words, "--base", str(tmp_path / "nowhere"))
        assert ended.returncode == 1 and "nowhere" in ended.stdout + ended.stderr, (words, ended)
    ended = ankipi("check", "--base", str(tmp_path))
    assert ended.returncode == 0 and "Nothing is stored" in ended.stdout, ended
