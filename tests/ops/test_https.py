"""https with certificates of one's own (cross/proxy/certs.sh), through each small proxy, by the real client."""

import subprocess

import pytest
from anki.errors import NetworkError

from commands import run
from proxies import Hitch, Lighttpd
from server import REPO
from test_proxies import server, syncs_through, tls_versions, trusting  # noqa: F401: fixtures

CERTS = REPO / "cross/proxy/certs.sh"
SNIPPETS = REPO / "cross/proxy"


def certs(folder, *args, status=0):
    ended = subprocess.run(["sh", CERTS, "--dir", folder, *args], capture_output=True, text=True)
    assert ended.returncode == status, ended
    return ended.stdout + ended.stderr


def described(path):
    return subprocess.run(["openssl", "x509", "-in", path, "-noout", "-text"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def own_certs(tmp_path):
    folder = tmp_path / "certs"
    certs(folder, "localhost", "anki.lan", "127.0.0.1", "::1")
    # hitch runs as nobody.
    folder.chmod(0o755)
    return folder


def test_root_and_server_are_what_every_device_takes(own_certs):
    root, leaf = described(own_certs / "root.crt"), described(own_certs / "server.crt")
    assert "CA:TRUE, pathlen:0" in root and "prime256v1" in root
    assert "CA:FALSE" in leaf and "TLS Web Server Authentication" in leaf and "prime256v1" in leaf
    assert "DNS:localhost, DNS:anki.lan, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1" in leaf
    openssl = ["openssl", "x509", "-in", own_certs / "server.crt", "-noout"]
    assert subprocess.run([*openssl, "-checkend", str(819 * 86_400)], capture_output=True).returncode == 0
    assert subprocess.run([*openssl, "-checkend", str(825 * 86_400)], capture_output=True).returncode == 1
    for secret in ("root.key", "server.key", "server.pem"):
        assert (own_certs / secret).stat().st_mode & 0o077 == 0, secret


def test_renewal_keeps_root_and_names(own_certs):
    def names():
        return [line for line in described(own_certs / "server.crt").splitlines() if "DNS:" in line]

    root, leaf, before = (own_certs / "root.crt").read_text(), (own_certs / "server.crt").read_text(), names()
    assert "devices need nothing" in certs(own_certs, "renew")
    assert (own_certs / "root.crt").read_text() == root
    assert (own_certs / "server.crt").read_text() != leaf and names() == before
    verified = ["openssl", "verify", "-CAfile", own_certs / "root.crt", own_certs / "server.crt"]
    assert subprocess.run(verified, capture_output=True).returncode == 0


def test_what_is_no_name_is_refused(tmp_path):
    assert "no https://" in certs(tmp_path, "https://anki.lan", status=1)
    assert "there is no certificate" in certs(tmp_path, "renew", status=1)


def site(name, server, folder):  # noqa: F811
    text = (SNIPPETS / name).read_text().replace("/etc/ankipi/certs", str(folder))
    text = text.replace("listen [::]:443 ssl;", "").replace("listen 443 ssl;", "listen 127.0.0.1:LISTEN ssl;")
    text = text.replace('"socket"] == ":443"', '"socket"] == "127.0.0.1:LISTEN"').replace('"[*]:443"', '"[127.0.0.1]:LISTEN"')
    return text.replace(":8080", f":{server.port}").replace('"port" => 8080', f'"port" => {server.port}').replace("]:8080", f"]:{server.port}")


def test_the_doctor_tries_tls_1_2_too(server, nginx, own_certs):  # noqa: F811
    server = server()
    server.env["CURL_CA_BUNDLE"] = str(own_certs / "root.crt")
    text = site("nginx-https.conf", server, own_certs)
    good = run(server, "doctor", nginx(text, host="localhost", scheme="https").url)
    assert good.returncode == 0 and "TLS 1.2 is offered" in good.stdout, good
    bad = run(server, "doctor", nginx(text.replace("TLSv1.2 ", ""), host="localhost", scheme="https").url)
    assert bad.returncode == 1 and "TLS 1.2 is not offered" in bad.stdout and "ssl_protocols" in bad.stdout, bad


@pytest.mark.parametrize("kind, name", [(None, "nginx-https.conf"), (Lighttpd, "lighttpd.conf"), (Hitch, "hitch.conf")])
def test_the_client_syncs_through_https(server, nginx, reverse_proxy, own_certs, syncs_through, trusting, new_account, kind, name):  # noqa: F811
    server = server()
    text = site(name, server, own_certs)
    proxy = (nginx if kind is None else lambda *args, **kwargs: reverse_proxy(kind, *args, **kwargs))(text, host="localhost", scheme="https")
    assert tls_versions(proxy.port, own_certs / "root.crt") == ["TLSv1.2", "TLSv1.3"]
    stranger = new_account(server, "anna", "secret").device("stranger")
    stranger.use(proxy.url)
    with pytest.raises(NetworkError):
        stranger.login()
    trusting(own_certs / "root.crt")
    syncs_through(server, proxy.url)


def test_the_page_offers_the_root_and_never_a_key(own_certs, new_server, tmp_path, browser):
    root = (own_certs / "root.crt").read_text()
    both = tmp_path / "both.pem"
    both.write_text((own_certs / "root.key").read_text() + root)
    for path in (own_certs / "root.crt", both):
        plain = new_server("anna:secret", SYNC_ROOT_CERT=str(path))
        page, (status, file) = plain.get("/")[1].decode(), plain.get("/root.crt")
        assert status == 200 and file.decode() == root
        assert root.strip() in page and "Custom root certificate" in page and "PRIVATE" not in page + file.decode()
        verified = subprocess.run(["openssl", "verify", "-CAfile", "/dev/stdin", own_certs / "server.crt"], input=file, capture_output=True)
        assert verified.returncode == 0, verified
    shown = browser.open(plain.url, 320)
    assert shown.count(">Copy</button>") == 5 and f'href="{plain.url}root.crt"' in shown, shown
    # Unset, or no certificate: no section, and the log says why.
    without = new_server("anna:secret")
    assert without.get("/root.crt")[0] == 404 and "Certificate</h2>" not in without.get("/")[1].decode()
    wrong = new_server("anna:secret", SYNC_ROOT_CERT=str(own_certs / "root.key"))
    assert wrong.get("/root.crt")[0] == 500 and "Certificate</h2>" not in wrong.get("/")[1].decode()
    assert "holds no certificate" in wrong.log()
