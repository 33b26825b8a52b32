"""`ankipi doctor` in front of proxies that are set up well, and in the ways that people get wrong."""

import subprocess
import time

import pytest

from commands import done, run
from server import command, free_port
from test_clock import Clock, new_unset  # noqa: F401: a fixture
from test_pages import lan_address
from test_proxies import snippet


@pytest.fixture
def server(new_server):
    return new_server("anna:secret")


def found(server, url: str, *args: str, **kwargs) -> str:
    """What the doctor finds wrong: all but one thing is well."""
    ended = run(server, "doctor", url, *args, **kwargs)
    said = ended.stdout
    assert ended.returncode == 1 and said.count("WRONG") == 1, said + ended.stderr
    assert all(len(line) <= 80 or " " not in line.strip() for line in said.splitlines()), said
    return " ".join(said[said.index("WRONG"):].split())


def test_all_is_well_with_the_server_itself(server):
    said = done(server, "doctor", server.url, "--user", "anna", input="secret\n")
    assert "without a proxy" in said and "anna can log in" in said and "clocks differ by 0 s" in said
    assert said.splitlines()[-1] == f"All is well. In Anki, type: {server.url}"
    assert "secret" not in server.log() + said


def test_who_tries_localhost_is_told_what_other_devices_need(new_server):
    everywhere, here = new_server("anna:secret", SYNC_HOST="0.0.0.0"), new_server("anna:secret", SYNC_HOST="127.0.0.1")
    lan = lan_address()
    for server in (everywhere, here):
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            said = " ".join(done(server, "doctor", url).split())
            assert "for this machine alone" in said and f"In Anki, type: {url}" in said, said
            if server is everywhere and lan:
                assert f"Type http://{lan}:{server.port}/ there" in said, said
            elif server is here:
                assert "see SYNC_HOST" in said, said
    if lan:
        assert "machine alone" not in done(everywhere, "doctor", f"http://{lan}:{everywhere.port}/")


def test_the_address_of_old_clients_is_known_and_a_wrong_path_is_not_called_the_fault_of_a_proxy(server, nginx):
    for more in ("sync/", "sync", "sync/sync/", "msync/"):
        said = " ".join(done(server, "doctor", server.url + more).split())
        assert "the beginning of a method's name" in said and f"In Anki, type: {server.url}" in said, said
        assert ("as the media address" in said) == ("msync" in more), said
    ended = run(server, "doctor", server.url + "anki/")
    assert ended.returncode == 1 and "Nothing is served at this path" in ended.stdout and "nginx" not in ended.stdout, ended
    # A proxy may serve it below such a path.
    site = snippet("nginx-subpath.conf", server).replace("/anki", "/sync")
    proxy = nginx("server {\nlisten 127.0.0.1:LISTEN;\n" + site + "\n}\n")
    said = done(server, "doctor", proxy.url + "sync/")
    assert f"In Anki, type: {proxy.url}sync/" in said and "method's name" not in said, said


def test_all_is_well_through_our_snippets(server, nginx):
    proxy = nginx(snippet("nginx.conf", server))
    said = done(server, "doctor", proxy.url, "--user", "anna", input="secret\n")
    assert "through nginx" in said and "2 MB pass" in said and "anna can log in" in said


def test_the_clock_is_looked_at_without_a_user(server, tmp_path):
    assert "clocks differ by 0 s" in done(server, "doctor", server.url)
    clock = Clock(tmp_path)
    server.stop()
    server.env |= clock.env
    clock.say(time.time() + 7000)
    server.start()
    for name in clock.env:
        del server.env[name]  # the doctor's own clock is right
    said = found(server, server.url)
    assert "the server's clock is 7000 s ahead" in said or "6999 s ahead" in said, said


def test_a_clock_that_is_not_set_is_named_without_a_user(new_unset, tmp_path):
    clock = Clock(tmp_path)
    clock.say(600)
    server = new_unset(clock, "anna:secret")
    for name in clock.env:
        del server.env[name]
    assert "cannot sync now" in found(server, server.url)


def test_a_wrong_password_and_a_missing_slash_are_named(server):
    said = found(server, server.url.rstrip("/"), "--user", "anna", input="wrong\n")
    assert "name or the password is wrong" in said
    assert "note   the address has no slash" in run(server, "doctor", server.url.rstrip("/")).stdout


@pytest.mark.parametrize("mistake, expected", [
    (("client_max_body_size 0;", ""), "client_max_body_size 0"),
    (("client_max_body_size 0;", "client_max_body_size 0; return 301 https://elsewhere.example/;"), "https://elsewhere.example/"),
    (("location / {", "location / { auth_basic 'x'; auth_basic_user_file /dev/null;"), "password of its own"),
    (("proxy_set_header Host", "proxy_set_header Anki-Sync ''; proxy_set_header Host"), "drop the header anki-sync"),
    (("location / {", "location / { if ($request_method = POST) { return 405; }"), "takes no POST"),
    (("location / {", "location /msync { return 404; }\nlocation / {"), "The path is lost"),
    (("location / {", "location / { default_type text/html; return 200 '<html>my blog</html>';"), "no sync server"),
])
def test_mistakes_in_nginx_are_named(server, nginx, mistake, expected):
    site = snippet("nginx.conf", server)
    assert mistake[0] in site
    proxy = nginx(site.replace(*mistake))
    assert expected in found(server, proxy.url)


def test_a_proxy_in_front_of_nothing_is_named(server, nginx):
    proxy = nginx(snippet("nginx.conf", server))
    server.stop()
    assert "does not reach ankipi" in found(server, proxy.url)


def test_hops_that_are_not_there_are_named(server):
    assert "nobody answers" in found(server, f"http://127.0.0.1:{free_port()}/")
    assert "name is not known" in found(server, "http://nobody.invalid/")
    assert "speaks http" in found(server, server.url.replace("http:", "https:"))


def test_a_certificate_that_is_not_trusted_is_named(server, caddy):
    site = snippet("Caddyfile", server).replace("anki.example.org {", "https://localhost:LISTEN {").replace("# tls internal", "tls internal")
    proxy = caddy(site, host="localhost", scheme="https")
    assert "certificate is not trusted" in found(server, proxy.url)
    server.env["CURL_CA_BUNDLE"] = str(proxy.root_certificate())
    said = done(server, "doctor", proxy.url, "--user", "anna", input="secret\n")
    assert "trusts its certificate" in said and "2 MB pass" in said and "anna can log in" in said


def test_without_curl_it_says_what_to_do(server, tmp_path):
    env = {**server.env, "PATH": str(tmp_path)}
    ended = subprocess.run([*command(official=False), "doctor", "https://localhost/"], env=env, capture_output=True, text=True)
    assert ended.returncode == 1 and "Install curl" in ended.stdout


def test_what_is_no_address_is_a_mistake_of_the_command_line(server):
    for text in ("localhost:8080", "ftp://localhost/", "http://me:secret@localhost/"):
        assert run(server, "doctor", text).returncode == 2, text
