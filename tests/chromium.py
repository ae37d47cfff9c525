"""A page in headless Chromium, asked over its debugging pipe; nothing but the browser is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 60.0
_FIRST, _SECOND = 3, 4
"""File descriptors on which Chromium reads commands and writes answers."""

LOOK = """({
    wider: document.documentElement.scrollWidth - window.innerWidth,
    images: document.images.length,
    empty: [...document.images].filter(each => !(each.complete && each.naturalWidth)).length,
    drawn: document.querySelectorAll('svg path, svg image, svg rect').length,
    text: document.body.innerText,
    paper: getComputedStyle(document.body).backgroundColor,
})"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a person would see of a page."""

    wider: int
    """Pixels by which the page is wider than the window."""
    images: int
    """Pictures."""
    empty: int
    """Pictures that show nothing."""
    drawn: int
    """Shapes of drawings."""
    text: str
    """Words of the page."""
    paper: str
    """Colour behind them."""
    complaints: list[str]
    """What the console, the security policy or the network had to say."""


class Browser:
    """One tab; made by `open_browser`."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process = process
        self._write = write
        self._answers = os.fdopen(read, "rb")
        self._number = 0
        self._complaints: list[str] = []
        self._loaded = False
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = ""
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def look(self, address: str, *, width: int = 390, dark: bool = False) -> Seen:
        """Load a page in a window of this width and say what is there."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._complaints, self._loaded = [], False
        stuck = Timer(PATIENCE_S, self._process.kill)
        stuck.start()
        self._ask("Page.navigate", url=address)
        while not self._loaded:
            self._note(self._receive())
        stuck.cancel()
        found = self._ask("Runtime.evaluate", expression=LOOK, returnByValue=True)
        return Seen(complaints=self._complaints, **found["result"]["value"])

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        self._answers.close()
        self._process.wait(PATIENCE_S)

    def _ask(self, method: str, **words: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": words}
        if getattr(self, "_session", ""):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        received = bytearray()
        while byte := self._answers.read(1):
            if byte == b"\0":
                return json.loads(received)
            received += byte
        raise AssertionError(f"the browser ended: {self._process.poll()}")

    def _note(self, event: dict[str, Any]) -> None:
        method, words = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Log.entryAdded":
            self._complaints.append(words["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self._complaints.append(str(words["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and words["type"] in ("error", "warning"):
            self._complaints.append(str(words["args"]))
        elif method == "Network.requestWillBeSent":
            address = words["request"]["url"]
            if not address.startswith("data:") and words.get("type") != "Document":
                self._complaints.append(f"loads {address}")


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start headless Chromium, or skip the test where there is none.

    Args:
        folder: empty; for its profile.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no headless browser here ({', '.join(NAMES)})")
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()

    def place() -> None:
        # Above both targets first, or one could be closed by the other's dup2.
        ends = [os.dup2(end, number) for end, number in ((commands_out, 20), (answers_in, 21))]
        for end, number in zip(ends, (_FIRST, _SECOND), strict=True):
            os.dup2(end, number)

    process = subprocess.Popen(
        [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
            "--no-first-run",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=place,  # noqa: PLW1509
    )
    os.close(commands_out)
    os.close(answers_in)
    stuck = Timer(PATIENCE_S, process.kill)  # an answer that never comes ends the wait for it
    stuck.start()
    try:
        browser = Browser(process, commands_in, answers_out)
        stuck.cancel()
        yield browser
        browser.close()
    finally:
        stuck.cancel()
        process.kill()
        process.wait()
