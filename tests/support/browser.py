"""A real Chromium driven over its debugging pipe; the sound that a page plays is measured."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Under which Chromium is installed."""

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)

LOG_EVENTS = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}

LISTEN = """
window.trouble = [];
addEventListener('error', (event) => trouble.push(event.message));
addEventListener('unhandledrejection', (event) => trouble.push(String(event.reason)));
addEventListener('securitypolicyviolation', (event) => trouble.push(`blocked ${event.blockedURI}`));
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode) {
    window.ear ??= new AnalyserNode(target.context, { fftSize: 4096, smoothingTimeConstant: 0 });
    connect.call(this, window.ear);
  }
  return connect.call(this, target, ...rest);
};
window.hear = () => {
  const samples = new Float32Array(2048), bins = new Float32Array(ear.frequencyBinCount);
  ear.getFloatTimeDomainData(samples);
  ear.getFloatFrequencyData(bins);
  const level = Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
  const loudest = bins.indexOf(bins.reduce((a, b) => Math.max(a, b)));
  return { level, hertz: loudest * ear.context.sampleRate / ear.fftSize };
};
window.place = (selector, across) => {
  const element = document.querySelector(selector);
  element.scrollIntoView({ block: 'center' });
  const box = element.getBoundingClientRect();
  return [box.x + across * box.width, box.y + box.height / 2];
};
"""
"""Runs before the page's own script: collects errors, and taps what goes to the loudspeaker."""


def chromium_path() -> str:
    """The Chromium that `CHROMIUM` names, else the first on the PATH.

    Without one the test is skipped, and fails where `DIFFDPO_REQUIRE_BROWSER` is set, as in continuous integration.
    """
    name = os.environ.get("CHROMIUM", "")
    path = next(filter(None, map(shutil.which, [name] if name else NAMES)), None)
    if path is not None:
        return path
    if name:
        pytest.fail(f"CHROMIUM={name}: no such program")
    reason = "no Chromium: apt-get install chromium, or set CHROMIUM to the path of one"
    if os.environ.get("DIFFDPO_REQUIRE_BROWSER", "0") not in ("", "0"):
        pytest.fail(reason)
    pytest.skip(reason)


class Browser:
    """As much of the DevTools protocol as the tests need: JSON messages, each ended by a zero byte."""

    def __init__(self, binary: str, profile: Path) -> None:
        requests, self.request_pipe = os.pipe()
        self.answer_pipe, answers = os.pipe()

        def wire() -> (
            None
        ):  # Chromium reads from descriptor 3 and writes to 4; first move ours out of the way
            high = [os.dup2(end, 60 + k) for k, end in enumerate((requests, answers))]
            for descriptor, end in zip((3, 4), high, strict=True):
                os.dup2(end, descriptor)

        self.process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=wire,
            close_fds=False,
        )
        os.close(requests)
        os.close(answers)
        self.count, self.rest = 0, b""
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.request_pipe, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.answer_pipe], [], [], 30)[0], "the browser does not answer"
            chunk = os.read(self.answer_pipe, 1 << 20)
            assert chunk, "the browser has ended"
            self.rest += chunk
        line, self.rest = self.rest.split(b"\0", 1)
        return dict(json.loads(line))

    def open(self, page: Path, ready: str = "document.body.className === 'js'") -> None:
        self.visit(page.as_uri(), ready)

    def visit(self, url: str, ready: str = "true") -> None:
        """Open an address, and wait until it is there and `ready`."""
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && {ready}")

    def requests(self) -> list[str]:
        """Addresses of everything that was asked for."""
        self.run("0")  # events so far are read with the answer
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path, width: int, height: int) -> None:
        """A picture of the page in a window of this size."""
        self.resize(width, height)
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(picture))

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def run(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            time.sleep(0.02)

    def click(self, selector: str, *, across: float = 0.5) -> None:
        """A real click, at a fraction of the width of the first element that matches."""
        x, y = self.run(f"place({selector!r}, {across})")
        place = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def press(self, key: str) -> None:
        codes = {
            " ": 32,
            "ArrowRight": 39,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowDown": 40,
            "Enter": 13,
            "Tab": 9,
        }
        code = codes.get(key, ord(key[0].upper()))
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            extra = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.request_pipe)
        os.close(self.answer_pipe)
