"""A page in headless Chromium, which is spoken to over two pipes: what a person sees and does there."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [f"--disable-{word}" for word in ("background-networking", "component-update", "sync", "gpu", "quic")]


class Page:
    """A tab; `asked` has the address of everything that it asked for."""

    def __init__(self, reads: int, writes: int) -> None:
        self.reads, self.writes, self.number, self.rest = reads, writes, 0, b""
        self.asked: list[str] = []
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for part in ("Page", "Network", "DOM"):
            self.call(f"{part}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and wait for its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": values, **self.session}
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.reads, 1 << 20)
            text, _, self.rest = self.rest.partition(b"\0")
            answer: dict[str, Any] = json.loads(text)
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked.append(answer["params"]["request"]["url"])
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def wait_for(self, expression: str, seconds: float = 120) -> Any:
        """Return what a JavaScript expression is as soon as that is true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")
            if found:
                return found
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds} s: {expression}")

    def drop(self, selector: str, file: Path) -> None:
        """Give a file to an input for files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def screenshot(self, path: Path, width: int, height: int) -> None:
        """Write a PNG of the page at a width."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        time.sleep(1)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """Open a tab in a Chromium of its own, which ends with the `with` block."""
    (reads, theirs_out), (theirs_in, writes) = os.pipe(), os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in (theirs_in, theirs_out)]  # 3 and 4 may be taken

    def hand_over() -> None:
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    words = ["--headless", "--no-sandbox", "--no-first-run", *QUIET, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [str(CHROMIUM), *words, "--remote-debugging-pipe"],
        preexec_fn=hand_over,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (theirs_out, theirs_in, *high):
        os.close(end)
    try:
        yield Page(reads, writes)
    finally:
        process.kill()
        process.wait()
        os.close(reads)
        os.close(writes)
