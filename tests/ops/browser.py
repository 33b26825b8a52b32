"""Chromium without a window, driven by its DevTools protocol through a pipe: screens of any width, light and dark, clicks, pictures.

A window of its own is never narrower than 500 pixels; a screen that DevTools emulates is.
"""

import base64
import itertools
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

WAIT_SECS = 30

# What goes beyond the screen or is cut off: the page itself, or an element that hides or spills what it holds. A block that
# scrolls by itself may hold more than it shows.
BROKEN = """
[...document.querySelectorAll("body, body *")].filter(element => {
  const box = element.getBoundingClientRect(), scrolls = getComputedStyle(element).overflowX == "auto";
  if (!box.width || element.closest("svg")) return false;
  return box.left < 0 || box.right > innerWidth || !scrolls && element.clientWidth && element.scrollWidth > element.clientWidth;
}).map(element => element.outerHTML.slice(0, 80)).concat(document.documentElement.scrollWidth > innerWidth ? ["the page"] : [])
"""


class Browser:
    def __init__(self, path: str):
        self.folder = tempfile.TemporaryDirectory(prefix="ankipi-browser-")
        to_browser, self.send_to = os.pipe()
        self.receive_from, from_browser = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}"]
        # It reads from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(["bash", "-c", script, "bash", path, *options, "about:blank"], pass_fds=(to_browser, from_browser),
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.numbers, self.received, self.session = itertools.count(1), b"", None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_SECS)
        os.close(self.send_to)
        os.close(self.receive_from)
        self.folder.cleanup()

    def call(self, method: str, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.send_to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.received:
                part = os.read(self.receive_from, 1 << 20)
                assert part, "the browser ended"
                self.received += part
            line, self.received = self.received.split(b"\0", 1)
            reply = json.loads(line)
            if reply.get("id") == number:
                assert "error" not in reply, (method, reply)
                return reply["result"]

    def value_of(self, script: str):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, (script, result)
        return result["result"].get("value")

    def open(self, url: str, width: int = 1280, dark: bool = False, height: int = 800) -> str:
        """What the page is once its scripts have run, on a screen of this width; nothing of it may be cut off."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=url)
        self.wait_until(f'location.href.startsWith({json.dumps(url)}) && document.readyState == "complete"')
        assert self.value_of("innerWidth") == width
        broken = self.value_of(BROKEN)
        assert not broken, f"{url} on {width} pixels: {broken}"
        return self.value_of("document.documentElement.outerHTML")

    def wait_until(self, script: str) -> None:
        deadline = time.monotonic() + WAIT_SECS
        while not self.value_of(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)

    def picture(self, path: Path) -> Path:
        """The whole page, also what is below the screen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))
        return path

    def click(self, selector: str, number: int = 0) -> None:
        """As a finger would: in the middle of the element, which must be what is there."""
        find = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        x, y, is_there = self.value_of(f"""(() => {{
            const element = {find}; element.scrollIntoView({{block: "center"}});
            const box = element.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2;
            return [x, y, document.elementFromPoint(x, y) == element]; }})()""")
        assert is_there, f"{selector} is covered"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def clipboard(self, url: str) -> str:
        """What was copied. Only pages of this machine or from https may ask: `url` is such a page."""
        self.open(url)
        self.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        self.call("Page.bringToFront")
        return self.value_of("navigator.clipboard.readText()")
