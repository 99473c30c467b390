"""A headless Chromium, driven by its DevTools protocol over two pipes: no package needed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

NAMES = ("chromium", "chromium-browser", "google-chrome")
_START = "import os, sys; [os.dup2(int(fd), at) for fd, at in zip(sys.argv[1:3], (3, 4))]; "
_START += "os.execv(sys.argv[3], sys.argv[3:])"
_PATIENCE = 60  # seconds for an answer: a busy machine starts slowly


def find():
    """The browser's program, if one is there that can be started."""
    for name in NAMES:
        if path := shutil.which(name):
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run([path, "--version"], capture_output=True, check=True, timeout=60)
                return path
    return None


class Browser:
    """One page of a browser.

    `problems` holds what it complained of: errors and warnings of its console, exceptions,
    whatever its policy forbade; `requests` every address that it asked for.
    """

    def __init__(self, program):
        self.problems, self.requests = [], []
        self._number, self._unread, self._session = 0, b"", None
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        # Above those that Chromium reads from and writes to, 3 and 4.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
        for fd in (theirs_in, theirs_out):
            os.close(fd)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _START, *map(str, high)),
                *(program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
                *(f"--user-data-dir={self._home.name}", "--remote-debugging-pipe", "about:blank"),
            ],
            pass_fds=high,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in high:
            os.close(fd)
        pages = self.call("Target.getTargets")["targetInfos"]
        (target,) = [page["targetId"] for page in pages if page["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._to)
        self._process.terminate()
        self._process.wait()
        os.close(self._from)
        self._home.cleanup()

    def call(self, method, **parameters):
        """The answer to a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        number = self._number
        while True:
            told = self._read()
            if told.get("id") == number:
                assert "error" not in told, f"{method}: {told['error']}"
                return told["result"]

    def _read(self):
        """The next message; events are noted."""
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(until - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            part = os.read(self._from, 1 << 16)
            assert part, "the browser has ended"
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\0")
        told = json.loads(line)
        given = told.get("params", {})
        match told.get("method"):
            case "Runtime.consoleAPICalled" if given["type"] in ("error", "warning", "assert"):
                self.problems.append(str(given["args"]))
            case "Runtime.exceptionThrown":
                self.problems.append(str(given["exceptionDetails"]))
            case "Log.entryAdded" if given["entry"]["level"] in ("error", "warning"):
                self.problems.append(given["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])
        return told

    def open(self, path, *, width=1280, height=900, dark=False, scripts=True, touch=False):
        """Show a file in a window of a size, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=path.absolute().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass
        self.call("Emulation.setScriptExecutionDisabled", value=False)

    def run(self, expression):
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, code=0):
        """A key of the keyboard, down and up, where the focus is."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            name = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, **name, **text)

    def drag(self, start, end, *, finger=False):
        """The mouse with its button down, or a finger, from one (x, y) to another."""
        if finger:
            for kind, points in (("Start", [start]), ("Move", [end]), ("End", [])):
                told = [{"x": x, "y": y} for x, y in points]
                self.call("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=told)
            return
        for kind, (x, y) in (("Pressed", start), ("Moved", end), ("Released", end)):
            held = {"button": "left", "buttons": 1, "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **held)

    def screenshot(self, *, whole=True):
        """A PNG of what is shown, or of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    def pdf(self):
        """The page as it is printed."""
        printed = self.call("Page.printToPDF", preferCSSPageSize=True)
        return base64.b64decode(printed["data"])
