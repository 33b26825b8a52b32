"""The real client through real proxies, as people set them up."""

import random
import re
import socket
import ssl

import pytest
from anki.errors import NetworkError

from device import FULL_UPLOAD
from server import REPO
from test_media import held, put, sync_media

SNIPPETS = REPO / "cross/proxy"

# The server block of a well-known guide to self-hosting, word for word but for the ports and the name. It says
# `Connection: upgrade` in every request.
GUIDE = """
server {
	server_name anki.example.org;
	listen 80;
	client_max_body_size 500M;
	location / {
		proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
		proxy_set_header Host $host;

		proxy_pass http://0.0.0.0:8080;

		proxy_buffering off;
		proxy_http_version 1.1;
		proxy_set_header Upgrade $http_upgrade;
		proxy_set_header Connection "upgrade";
	}
}
"""


def with_ports(config: str, server) -> str:
    """The site as it would be written, on ports that are free here."""
    config = re.sub(r"listen \[::\]:80;\n", "", config)
    return config.replace("listen 80;", "listen 127.0.0.1:LISTEN;").replace(":8080", f":{server.port}")


def snippet(name: str, server) -> str:
    return with_ports((SNIPPETS / name).read_text(), server)


@pytest.fixture
def server(new_server):
    return lambda **env: new_server("anna:secret", SYNC_HOST="0.0.0.0", **env)


@pytest.fixture
def syncs_through(new_account):
    """Everything a client does, through this URL; more than the megabyte that nginx lets pass unless told otherwise."""

    def check(server, url: str) -> None:
        account = new_account(server, "anna", "secret")
        desk, phone = account.device("desk"), account.device("phone")
        for device in (desk, phone):
            device.use(url)
        filler = random.Random(1)
        desk.add_notes(400, filler.randbytes(2500).hex())
        desk.login()
        assert desk.try_sync() == FULL_UPLOAD
        desk.upload()
        phone.download()
        assert phone.count("notes") == 400
        big = filler.randbytes(3_000_000)
        put(desk, "big.jpg", big)
        desk.add_note("from the desk")
        desk.add_notes(300, filler.randbytes(4000).hex())
        desk.sync()
        sync_media(desk)
        phone.add_note("from the phone")
        put(phone, "phone.jpg", b"phone")
        phone.sync()
        sync_media(phone)
        desk.sync()
        sync_media(desk)
        assert desk.fronts() == phone.fronts() and len(desk.fronts()) == 702
        assert held(desk) == held(phone) and set(held(desk)) == {"big.jpg", "phone.jpg"}
        account.close()

    return check


def test_nginx_as_the_guide_configures_it(server, nginx, syncs_through):
    server = server()
    syncs_through(server, nginx(with_ports(GUIDE, server)).url)


def test_nginx_with_our_snippet(server, nginx, syncs_through):
    server = server()
    syncs_through(server, nginx(snippet("nginx.conf", server)).url)


def test_nginx_that_adds_many_headers_and_odd_bytes(server, nginx, syncs_through):
    """As Cloudflare does with mTLS and Access (70 to 95 lines), and GeoIP with names of cities."""
    server = server()
    more = "".join(f"proxy_set_header X-Access-{number} value;\n" for number in range(85))
    city = 'proxy_set_header X-City "Zürich 東京";\nproxy_set_header X-City-Latin1 "Z\udcfcrich \udca0\udcff";\n'
    site = snippet("nginx.conf", server)
    assert site.count("proxy_pass ") == 1
    syncs_through(server, nginx(site.replace("proxy_pass ", more + city + "proxy_pass ")).url)


@pytest.mark.parametrize("stripped", [True, False])
def test_nginx_below_a_path(server, nginx, syncs_through, stripped):
    server = server(**({} if stripped else {"SYNC_BASE_PATH": "/anki"}))
    location = snippet("nginx-subpath.conf", server)
    if not stripped:
        location = location.replace(f":{server.port}/;", f":{server.port};")
    site = "server {\nlisten 127.0.0.1:LISTEN;\n" + location + "\n}\n"
    syncs_through(server, nginx(site).url + "anki/")


def tls_versions(port: int, root) -> list[str]:
    """The versions of TLS that a proxy speaks, with this root alone trusted. AnkiMobile needs 1.2."""
    spoken = []
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=root)
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                spoken.append(secure.version())
    return spoken


@pytest.fixture
def trusting(monkeypatch):
    """Lets the client trust a certificate besides those of the system; where a desktop's user would import it there."""
    return lambda path: monkeypatch.setenv("SSL_CERT_FILE", str(path))


def test_caddy_that_signs_for_itself(server, caddy, syncs_through, trusting, new_account):
    server = server()
    site = snippet("Caddyfile", server).replace("anki.example.org {", "https://localhost:LISTEN {").replace("# tls internal", "tls internal")
    proxy = caddy(site, host="localhost", scheme="https")
    stranger = new_account(server, "anna", "secret").device("stranger")
    stranger.use(proxy.url)
    with pytest.raises(NetworkError):
        stranger.login()
    assert tls_versions(proxy.port, proxy.root_certificate()) == ["TLSv1.2", "TLSv1.3"]
    trusting(proxy.root_certificate())
    syncs_through(server, proxy.url)


@pytest.mark.parametrize("stripped", [True, False])
def test_caddy_below_a_path(server, caddy, syncs_through, stripped):
    server = server(**({} if stripped else {"SYNC_BASE_PATH": "/anki"}))
    site = snippet("Caddyfile-subpath", server)
    if not stripped:
        site = site.replace("handle_path", "handle")
    syncs_through(server, caddy("http://127.0.0.1:LISTEN {\n" + site + "\n}\n").url + "anki/")
