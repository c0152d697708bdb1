"""Chromium without a window, spoken to over a pipe: what a page looks like to who opens it."""

from __future__ import annotations

import base64
import fcntl
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# axe-core as a wheel brings it; the wheel itself drives another browser and isn't imported
_WHEEL = importlib.util.find_spec("axe_playwright_python")
AXE = Path(_WHEEL.origin).with_name("axe.min.js") if _WHEEL and _WHEEL.origin else None
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions")
# it reads from descriptor 3 and writes to 4
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3), os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
# boxes that reach beyond the window, and aren't in a region of their own that scrolls
_OVERFLOW = """(() => {
  const wide = document.documentElement.clientWidth, found = [];
  for (const each of document.body.querySelectorAll("*")) {
    if (each.closest(".scroll, .chips, pre, nav, .skip") || !each.checkVisibility()) continue;
    const box = each.getBoundingClientRect();
    if (box.right > wide + 1 || box.left < -1) found.push(each.outerHTML.slice(0, 120));
  }
  const whole = document.documentElement.scrollWidth;
  return whole > wide ? [`${whole} px of ${wide}`, ...found] : found;
})()"""

# What fails, and what axe can't tell, but for contrasts: of text over a picture, or beside a cell that stays, it can't;
# the palette's own are in tests/report/test_theme.py. Shades behind tables, and cells that stay, are left out for it.
_STILL = ".scroll { background: none } .scroll tbody th { position: static }"
_JUDGED = f"""(async () => {{
  document.head.append(Object.assign(document.createElement("style"), {{textContent: "{_STILL}"}}));
  const found = await axe.run(document);
  const all = [...found.violations, ...found.incomplete.filter(rule => rule.id != "color-contrast")];
  const said = (rule, node) => `${{rule.id}}: ${{node.html.slice(0, 160)}}: ${{node.failureSummary}}`;
  return all.flatMap(rule => rule.nodes.map(node => said(rule, node)));
}})()"""


class Browser:
    """A browser with one tab; https://chromedevtools.github.io/devtools-protocol says what it can be told.

    Attributes:
        heard: every message of the browser's own accord, in order.
    """

    def __init__(self, profile: Path):
        assert CHROMIUM is not None
        (there, self._write), (self._read, back) = os.pipe(), os.pipe()
        there, back = (_moved(each) for each in (there, back))
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        started = [sys.executable, "-c", _START, str(there), str(back), *command]
        self._process = subprocess.Popen(started, pass_fds=(there, back), stderr=subprocess.DEVNULL)
        os.close(there)
        os.close(back)
        self._numbers, self._left, self.heard = itertools.count(1), b"", []
        self._session = ""
        target = next(each for each in self.tell("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self.tell("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = ""
        self.tell("Browser.close")
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    def tell(self, method: str, **given: Any) -> dict[str, Any]:
        """Send a command, and give its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": given}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.heard.append(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, page: Path, width: int, height: int = 900, *, dark: bool = False, media: str = "screen") -> None:
        """Show a page and wait until it stands; what was heard before is forgotten."""
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.heard.clear()
        self.tell("Page.navigate", url=page.resolve().as_uri())
        while all(each.get("method") != "Page.loadEventFired" for each in self.heard):
            self.heard.append(self._next())

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript, and wait for a promise; a page's policy doesn't bind what a browser's owner runs."""
        answer = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, to: Path, *, whole: bool = False) -> None:
        """Save what is seen, or the whole page."""
        shot = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        to.write_bytes(base64.b64decode(shot["data"]))

    @property
    def complaints(self) -> list[str]:
        """Say what the console says, and which addresses were asked for besides the page."""
        console = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        said = [json.dumps(each["params"]) for each in self.heard if each.get("method") in console]
        asked = [each["params"]["request"] for each in self.heard if each.get("method") == "Network.requestWillBeSent"]
        others = [each["url"] for each in asked[1:]]  # the first is the page
        return said + [url for url in others if not url.startswith("data:")]

    @property
    def height(self) -> int:
        """Of the whole page, in pixels."""
        return int(self.value("document.documentElement.scrollHeight"))

    @property
    def overflow(self) -> list[str]:
        """What sticks out of the window sideways."""
        return list(self.value(_OVERFLOW))

    @property
    def barriers(self) -> list[str]:
        """What axe-core finds that keeps somebody from reading what is unfolded."""
        assert AXE is not None
        self.value(f"{AXE.read_text(encoding='utf-8')}\n;0")
        return list(self.value(_JUDGED))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            got = os.read(self._read, 1 << 20)
            assert got, "the browser is gone"
            self._left += got
        message, self._left = self._left.split(b"\0", 1)
        return json.loads(message)


def _moved(descriptor: int) -> int:
    """The same pipe under a number that isn't one of those the browser uses."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)
    os.close(descriptor)
    return moved
