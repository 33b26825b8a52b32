"""The pages for people and for Prometheus."""

import html
import re
import subprocess

import pytest

from conftest import program
from test_proxies import snippet


@pytest.fixture
def browser(tmp_path):
    """Chromium without a window: gives what it made of a page, and a picture for who wants to look."""
    path = program("chromium", "chromium")

    def look(url: str, width: int, dark: bool = False) -> str:
        picture = tmp_path / f"{width}{'-dark' * dark}.png"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/profile",
                   f"--window-size={width},900", f"--screenshot={picture}", "--dump-dom"]
        options += ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
        ended = subprocess.run([path, *options, url], capture_output=True, text=True, timeout=90)
        assert picture.stat().st_size > 5000, ended.stderr
        return ended.stdout

    return look


def addresses(dom: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r'<code class="url"[^>]*>([^<]*)</code>', dom)]


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
    for name in metrics:
        assert f"# TYPE {name.split('{')[0]} " in text.decode()
    assert "anna" not in text.decode()
