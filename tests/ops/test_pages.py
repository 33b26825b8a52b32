"""The pages for people and for Prometheus."""

import html
import re
import subprocess
import time

import pytest

from proxies import program
from test_proxies import snippet


@pytest.fixture
def browser(tmp_path):
    """Chromium without a window: gives what it made of a page, and a picture for who wants to look."""
    path = program("chromium", "chromium")

    def look(url: str, width: int, dark: bool = False) -> str:
        picture = tmp_path / f"{width}{'-dark' * dark}.png"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/profile",
                   f"--window-size={width},1200", f"--screenshot={picture}", "--dump-dom"]
        options += ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
        ended = subprocess.run([path, *options, url], capture_output=True, text=True, timeout=90)
        assert picture.stat().st_size > 5000, ended.stderr
        return ended.stdout

    return look


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
    page = browser(server.url, 1280)
    assert addresses(page) == [url, url, url + "msync", url] and 'id="lan"><small>' in page
    # From another machine the page tells nothing that the browser does not know.
    assert 'data-lan=""' in browser(url, 390).replace(server.url.rstrip("/"), "")


@pytest.mark.parametrize("width, dark", [(320, False), (390, True), (1280, False), (1280, True)])
def test_the_page_fits_every_screen(new_server, browser, width, dark, tmp_path):
    server = new_server("anna:secret")
    page = browser(server.url, width, dark)
    assert page.count(">Copy</button>") == 4
    picture = tmp_path / f"{width}{'-dark' * dark}.png"
    if width > 600:
        # What the picture holds is what a phone reads.
        read = subprocess.run([program("zbarimg", "zbar-tools"), "--quiet", "--raw", picture], capture_output=True, text=True)
        assert read.stdout.strip() == server.url, read
    else:
        assert '<section id="qr" hidden' in page


def test_the_page_shows_the_exact_addresses(new_server, nginx, browser):
    server = new_server("anna:secret")
    url = server.url
    assert addresses(server.get("/")[1].decode()) == [url, url, url + "msync", url]
    assert addresses(browser(url, 400)) == [url, url, url + "msync", url]
    # Behind a proxy that takes a path off and tells nothing of it.
    site = "server {\nlisten 127.0.0.1:LISTEN;\n" + snippet("nginx-subpath.conf", server).replace("proxy_set_header X-Forwarded-Prefix /anki;", "") + "\n}\n"
    url = nginx(site).url + "anki/"
    assert addresses(browser(url, 1200, dark=True)) == [url, url, url + "msync", url]


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
