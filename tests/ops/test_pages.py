"""The pages for people and for Prometheus."""

import html
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from proxies import program
from server import REPO, Server
from test_proxies import snippet


def addresses(dom: str) -> list[str]:
    return [html.unescape(text).replace("<wbr>", "") for text in re.findall(r'<code class="url"[^>]*>(.*?)</code>', dom)]


def lan_address() -> str | None:
    """The address of this machine that other devices reach, if it has one."""
    found = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    return next((one for one in found if ":" not in one and not one.startswith("169.254.")), None)


def test_on_the_machine_itself_the_page_shows_what_other_devices_reach(new_server, browser):
    lan = lan_address()
    if lan is None:
        pytest.skip("this machine has no address but loopback")
    server = new_server("anna:secret", SYNC_HOST="0.0.0.0")
    url = f"http://{lan}:{server.port}/"
    assert f"other devices on this network reach it at {url}" in server.log()
    page = browser.open(server.url)
    assert addresses(page) == [url, url, url + "msync", url] and 'id="lan"><small>' in page
    # From another machine the page tells nothing that the browser does not know.
    assert 'data-lan=""' in browser.open(url, 390).replace(server.url.rstrip("/"), "")


def test_a_server_for_its_own_machine_says_that_no_phone_reaches_it(new_server, browser):
    server = new_server("anna:secret", SYNC_HOST="127.0.0.1")
    page = browser.open(server.url)
    assert 'id="loopback"><small>' in page and '<section id="qr" hidden' in page
    # A name that only begins like one of the machine itself is another one's.
    page = browser.open(f"http://localhost.localhost:{server.port}/")
    assert 'id="loopback" hidden' in page and '<section id="qr">' in page


@pytest.fixture(scope="module")
def with_certificate(tmp_path_factory):
    """A server with all that its page can show."""
    folder = tmp_path_factory.mktemp("page")
    subprocess.run(["sh", REPO / "cross/proxy/certs.sh", "--dir", folder / "certs", "anki.lan"], check=True, capture_output=True)
    server = Server(folder / "base", ["anna:secret"], SYNC_HOST="0.0.0.0", SYNC_ROOT_CERT=str(folder / "certs/root.crt"))
    yield server
    server.stop()


# `localhost` has any name below it. The longest that a QR code of the page holds, and one that is longer than a line of a phone.
HOSTS = {"short": "pi.localhost", "long": "anki-sync-server-on-the-board-under-the-stairs.local.localhost", "one word": "x" * 60 + ".localhost"}


SCREENS = [(width, dark, "short") for width in (320, 390, 1280) for dark in (False, True)]


@pytest.mark.parametrize("width, dark, host", SCREENS + [(width, False, host) for width in (320, 1280) for host in ("long", "one word")])
def test_the_page_fits_every_screen(with_certificate, browser, width, dark, host, tmp_path):
    url = f"http://{HOSTS[host]}:{with_certificate.port}/"
    page = browser.open(url, width, dark)
    assert page.count(">Copy</button>") == 5 and addresses(page) == [url, url, url + "msync", url]
    picture = browser.picture(tmp_path / "page.png")
    if os.environ.get("ANKIPI_PICTURES"):
        shutil.copy(picture, Path(os.environ["ANKIPI_PICTURES"]) / f"{host}-{width}-{'dark' if dark else 'light'}.png".replace(" ", "-"))
    if width > 600:
        # What the picture holds is what a phone reads.
        read = subprocess.run([program("zbarimg", "zbar-tools"), "--quiet", "--raw", picture], capture_output=True, text=True)
        assert read.stdout.strip() == url, read
    else:
        assert '<section id="qr" hidden' in page
    ink, paper = (browser.value_of(f"getComputedStyle(document.body).{what}") for what in ("color", "backgroundColor"))
    brightness = [sum(int(part) for part in re.findall(r"\d+", color)[:3]) for color in (ink, paper)]
    assert brightness[0] > 500 > 200 > brightness[1] if dark else brightness[0] < 200 < 500 < brightness[1], (ink, paper)


@pytest.mark.parametrize("width, secure", [(320, False), (1280, True)], ids=["http", "as https"])
def test_the_buttons_copy(with_certificate, browser, width, secure):
    """A page from http on another machine has no clipboard but by the old command; one of the machine itself has it, as from https."""
    lan = lan_address()
    if lan is None and not secure:
        pytest.skip("this machine has no address but loopback")
    url, own = f"http://{lan}:{with_certificate.port}/", f"http://127.0.0.1:{with_certificate.port}/"
    shown = own if secure else url
    root = with_certificate.get("/root.crt")[1].decode()
    for number, text in enumerate([url, url, url + "msync", url, root] if lan else [own, own, own + "msync", own, root]):
        browser.open(shown, width)
        assert browser.value_of("!!navigator.clipboard") == secure
        sizes = browser.value_of(SIZES)
        browser.click("button", number)
        browser.wait_until(f"document.querySelectorAll('button')[{number}].textContent == 'Copied'")
        assert browser.value_of(SIZES) == sizes, "the words moved when the button changed its own"
        assert browser.clipboard(own).strip() == text.strip()


SIZES = "JSON.stringify([...document.querySelectorAll('section, code, button')].map(element => element.getBoundingClientRect().width))"


def test_the_page_shows_the_exact_addresses(new_server, nginx, browser):
    server = new_server("anna:secret")
    url = server.url
    assert addresses(server.get("/")[1].decode()) == [url, url, url + "msync", url]
    assert addresses(browser.open(url, 400)) == [url, url, url + "msync", url]
    # Behind a proxy that takes a path off and tells nothing of it.
    site = "server {\nlisten 127.0.0.1:LISTEN;\n" + snippet("nginx-subpath.conf", server).replace("proxy_set_header X-Forwarded-Prefix /anki;", "") + "\n}\n"
    url = nginx(site).url + "anki/"
    assert addresses(browser.open(url, 1200, dark=True)) == [url, url, url + "msync", url]


def test_without_scripts_a_proxy_that_tells_is_believed(new_server, nginx):
    server = new_server("anna:secret")
    proxy = nginx("server {\nlisten 127.0.0.1:LISTEN;\n" + snippet("nginx-subpath.conf", server).replace("$scheme", "https") + "\n}\n")
    page = subprocess.run(["curl", "--silent", proxy.url + "anki/"], capture_output=True, text=True).stdout
    assert addresses(page)[0] == f"https://127.0.0.1:{proxy.port}/anki/"


def test_metrics_are_off_unless_asked_for(new_server, new_account):
    assert new_server("anna:secret").get("/metrics")[0] == 404
    server = new_server("anna:secret", "bob:geheim", SYNC_METRICS="yes")
    new_account(server, "anna", "secret").two_devices()
    server.get("/nothing")
    status, text = server.get("/metrics")
    assert status == 200
    metrics = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))
    assert int(metrics['ankipi_requests_total{status="2xx"}']) >= 4 and metrics['ankipi_requests_total{status="4xx"}'] == "1"
    assert metrics["ankipi_accounts"] == "2" and int(metrics["ankipi_received_bytes_total"]) > 1000
    assert 500_000 < int(metrics["process_resident_memory_bytes"]) < 50_000_000
    assert metrics['ankipi_logins_total{result="ok"}'] == "2"
    assert abs(int(metrics["process_start_time_seconds"]) - time.time()) < 60
    assert any(re.fullmatch(r'ankipi_build_info\{version="[\d.]+",target="\w[\w-]*"\}', name) for name in metrics)
    for name in metrics:
        assert f"# TYPE {name.split('{')[0]} " in text.decode()
    assert "anna" not in text.decode()


def test_metrics_for_networks_tell_when_who_synced_last(new_server, new_account):
    assert new_server("anna:secret", SYNC_METRICS="192.0.2.0/24").get("/metrics")[0] == 404
    server = new_server("anna:secret", "bob:geheim", SYNC_METRICS="192.0.2.0/24 127.0.0.0/8")
    new_account(server, "anna", "secret").two_devices()
    text = server.get("/metrics")[1].decode()
    synced = re.search(r'^ankipi_last_sync_timestamp_seconds\{user="anna"\} (\d+)$', text, re.M)
    assert synced and abs(int(synced[1]) - time.time()) < 60, text
    assert "bob" not in text
