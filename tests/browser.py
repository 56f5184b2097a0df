"""One Chromium for many pages, spoken to through pipes: pages as it lays them out, and what they ask for."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")


class Browser:
    """A browser with one tab.

    Attributes:
        requested: what the page that is shown asked for, beside itself.
    """

    def __init__(self, read: FileIO, write: FileIO) -> None:
        self._read, self._write = read, write
        self._number, self._rest, self._session = 0, b"", ""
        self.requested: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Performance"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        asked |= {"sessionId": self._session} if self._session else {}
        self._write.write(json.dumps(asked).encode() + b"\0")
        while (told := self._next()).get("id") != self._number:
            pass
        assert "error" not in told, told
        return dict(told["result"])

    def show(self, page: Path, width: int, *, dark: bool = False, script: bool = False, height: int = 800) -> None:
        """Open a page and wait until it is loaded."""
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.dress(dark=dark)
        self.requested = []
        self.call("Page.navigate", url=page.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def resize(self, width: int, height: int = 800) -> None:
        """Give the page that is shown another width."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def dress(self, *, dark: bool = False, printed: bool = False) -> None:
        """Show the page as somebody sees it who likes it dark, or as a printer is given it."""
        wish = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media="print" if printed else "", features=wish)

    def ask(self, expression: str) -> Any:
        """The value of an expression of JavaScript, which works where the page itself may run no script."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = self._read.read(1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        if told.get("method") == "Network.requestWillBeSent":
            # What a page holds in itself is no request.
            address = told["params"]["request"]["url"]
            self.requested += [] if address.startswith("data:") else [address]
        return told


@contextmanager
def browse(profile: Path) -> Iterator[Browser]:
    """A browser that ends with the block."""
    (theirs_read, ours_write), (ours_read, theirs_write) = os.pipe(), os.pipe()
    # It listens at 3 and speaks at 4.
    line = f'exec "$0" "$@" 3<&{theirs_read} 4>&{theirs_write}'
    command = ["bash", "-c", line, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, pass_fds=(theirs_read, theirs_write), stdout=quiet, stderr=quiet)
    os.close(theirs_read)
    os.close(theirs_write)
    with os.fdopen(ours_read, "rb", 0) as read, os.fdopen(ours_write, "wb", 0) as write:
        try:
            yield Browser(read, write)
        finally:
            # It ends where nobody speaks to it any more.
            write.close()
            process.wait(60)
