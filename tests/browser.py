"""A headless Chromium, driven through its debugging pipe with nothing but the standard library."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROGRAM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


class Browser:
    """One page."""

    def __init__(self, timeout: float = 300.0) -> None:
        assert PROGRAM is not None
        self.timeout = timeout
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        child_reads, self.to = os.pipe()
        self.back, child_writes = os.pipe()
        self.number, self.buffer = 0, b""
        self.events: list[dict[str, Any]] = []

        def wire() -> None:
            # The pipes may lie on 3 and 4 already: move them up first.
            reads, writes = os.dup2(child_reads, 30), os.dup2(child_writes, 31)
            os.dup2(reads, 3)
            os.dup2(writes, 4)

        self.process = subprocess.Popen(
            [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(3, 4, child_reads, child_writes), preexec_fn=wire,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        os.close(child_reads)
        os.close(child_writes)
        self.session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        try:
            self.session = None
            self.call("Browser.close")
        finally:
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            os.close(self.to)
            os.close(self.back)
            self.profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command's answer; events that come meanwhile are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self.timeout
        while True:
            while b"\0" not in self.buffer:
                ready, _, _ = select.select([self.back], [], [], max(0.0, end - time.monotonic()))
                if not ready:
                    raise TimeoutError(f"{method}: no answer from the browser in {self.timeout} s")
                part = os.read(self.back, 1 << 20)
                if not part:
                    raise RuntimeError(f"{method}: the browser ended")
                self.buffer += part
            line, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            if "method" in answer:
                self.events.append(answer)

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a file and wait until its script says that it is ready."""
        self.visit(path.resolve().as_uri(), width, height, dark)

    def visit(self, address: str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open an address and wait until its script says that it is ready."""
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank' && document.readyState === 'complete'")
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        self.wait(f"location.href === {json.dumps(address)} && document.documentElement?.dataset.ready === 'true'")

    def wait(self, condition: str | Callable[[], bool]) -> None:
        """Until an expression on the page holds, or something here does."""
        end = time.monotonic() + self.timeout
        while not (condition() if callable(condition) else self.run(condition)):
            if time.monotonic() > end:
                raise TimeoutError(str(condition))
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of an expression on the page; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def settle(self) -> None:
        """Two frames, so that what was asked for is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def point(self, selector: str, x: float = 0.5, y: float = 0.5, click: bool = False) -> None:
        """Move the mouse to a place in an element, and click. What comes later and moves the element on the page makes a
        click miss it: the page does not hear of such a click, and it is made again."""
        element = f"document.querySelector({json.dumps(selector)})"

        def place() -> Any:
            return self.run(f"(b => [b.left, b.top, b.width, b.height])({element}.getBoundingClientRect())")

        def reached() -> bool:
            self.run(f"{element}.scrollIntoView({{block: 'center'}})")
            box = place()
            at = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
            self.settle()
            if place() != box or not self.run(f"{element}.matches(':hover')"):
                return False
            if not click:
                return True
            self.run(
                "window.clicked = null; addEventListener('click', event => {"
                f"  window.clicked = event.composedPath().includes({element});"
                "  if (!window.clicked) { event.stopImmediatePropagation(); event.preventDefault(); }"
                "}, {capture: true, once: true})"
            )
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)
            self.wait("window.clicked !== null")
            self.settle()
            return bool(self.run("window.clicked"))

        self.wait(reached)

    def press(self, key: str) -> None:
        """One key."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)
        self.settle()

    def tab(self) -> None:
        """To the next control."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        self.settle()

    def canvas(self, selector: str = "#view") -> Any:
        """A canvas's pixels, int [H, W, 3]."""
        url = self.run(f"document.querySelector({json.dumps(selector)}).toDataURL('image/png')")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(int)

    def screenshot(self) -> Any:
        """What is seen, int [H, W, 3]."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
