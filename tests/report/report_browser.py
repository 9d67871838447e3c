"""A headless Chromium for tests, spoken to through its debugging pipe: no driver, no socket, no package.

The protocol is Chrome DevTools' (https://chromedevtools.github.io/devtools-protocol/), NUL-separated JSON on file descriptors
3 and 4. Whatever the page logs, throws or requests is kept for the tests to look at.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60
FAINT = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const v = c[i] / 255;
    return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }, 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const c = numbers(getComputedStyle(node).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
  };
  return [...document.querySelectorAll('SELECTOR')]
    .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()))
    .filter((node) => node.checkVisibility() && !node.closest('script, svg, button:disabled'))
    .filter((node) => {
      const [low, high] = [light(numbers(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05) < 4.5;
    }).map((node) => node.className || node.tagName);
})()"""
"""Elements whose text stands out too little from what is behind it: WCAG 2.2, 1.4.3, asks for 4.5."""


class Browser:
    """One browser process; use as a context manager."""

    def __init__(self, profile: Path):
        self._profile, self._rest, self._next, self.events = profile, b"", 0, []

    @staticmethod
    def available() -> bool:
        return shutil.which("chromium") is not None

    def __enter__(self) -> "Browser":
        (theirs_in, self._to), (self._from, theirs_out) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out)]

        def third_and_fourth() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        command = ["chromium", *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(3, 4), preexec_fn=third_and_fourth, **quiet)
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.send("Browser.close")
            self._process.wait(10)
        except (subprocess.TimeoutExpired, OSError, RuntimeError):
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def send(self, method: str, params: dict | None = None, session: str | None = None) -> dict:
        """Call a method and return its result; events that come meanwhile are kept in `events`."""
        self._next += 1
        number = self._next
        message = {"id": number, "method": method, "params": params or {}, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read(PATIENCE_S)
            if answer is None:
                raise RuntimeError(f"no answer to {method}")
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _read(self, patience_s: float) -> dict | None:
        deadline = time.monotonic() + patience_s
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self._from, 1 << 20) if ready else b""
            if not chunk:
                return None
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> "Page":
        return Page(self, url, width, height, dark, phone)


class Page:
    """One tab. `problems` is what the console, uncaught errors and the security policy said, `requests` the addresses asked for."""

    def __init__(self, browser: Browser, url: str, width: int, height: int, dark: bool, phone: bool):
        self._browser = browser
        target = browser.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = browser.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", metrics)
        self.send("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", {"features": scheme})
        self.send("Page.navigate", {"url": url})
        self.wait("document.readyState === 'complete'")

    def send(self, method: str, params: dict | None = None) -> dict:
        return self._browser.send(method, params, self._session)

    def run(self, script: str):
        """The value of a JavaScript expression; a promise is waited for."""
        options = {"expression": script, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.send("Runtime.evaluate", options)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", script))
        return answer["result"].get("value")

    def wait(self, condition: str, patience_s: float = 20) -> None:
        """Wait until a JavaScript expression holds."""
        deadline = time.monotonic() + patience_s
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise AssertionError(f"the page never met: {condition}")
            time.sleep(0.02)

    def faint(self, selector: str = "body *") -> list[str]:
        """Elements, by class or tag, whose text has too little contrast."""
        return self.run(FAINT.replace("SELECTOR", selector))

    def press(self, key: str) -> None:
        """Press and release a key by its DOM name, such as "ArrowRight" or "o"."""
        text = key if len(key) == 1 else None
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", {"type": kind, "key": key, **({"text": text} if text and kind == "keyDown" else {})})

    def move(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1})

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        shot = self.send("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def _events(self, method: str) -> list[dict]:
        mine = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in mine if event["method"] == method]

    @property
    def problems(self) -> list[str]:
        logged = [entry["entry"]["text"] for entry in self._events("Log.entryAdded") if entry["entry"]["level"] in ("error", "warning")]
        called = [str(call["args"]) for call in self._events("Runtime.consoleAPICalled") if call["type"] in ("error", "warning", "assert")]
        thrown = [error["exceptionDetails"]["text"] for error in self._events("Runtime.exceptionThrown")]
        return logged + called + thrown

    @property
    def requests(self) -> list[str]:
        return [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]


def opened(browser: Browser, page: Path, **options) -> Page:
    """A page of a file."""
    return browser.open(page.resolve().as_uri(), **options)
