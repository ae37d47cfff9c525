"""Pages as a person sees them in the system's Chromium, through playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import ConsoleMessage, Error, Playwright, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_MS = 120_000
"""A start of the browser that takes longer skips the test."""
LOAD_MS = 120_000

LOOK = """width => ({
    wider: document.documentElement.scrollWidth - width,
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
    """Messages of the console, the security policy, scripts and the network."""


class Browser:
    """A running Chromium; made by `open_browser`."""

    def __init__(self, chromium: Chromium, thread: ThreadPoolExecutor) -> None:
        self._chromium = chromium
        self._thread = thread

    def look(self, address: str, *, width: int = 390, dark: bool = False) -> Seen:
        """Load a page in a window of this width and say what is there."""
        return self._thread.submit(_look, self._chromium, address, width, dark).result()


@contextmanager
def open_browser(start_ms: float = START_MS) -> Iterator[Browser]:
    """Start headless Chromium, or skip the test where there is none that starts in time.

    The environment variable CHROMIUM names the program; by default it is looked for in PATH.
    """
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"there is no browser in PATH ({', '.join(NAMES)}), and CHROMIUM names none")
    # playwright leaves an event loop running in its thread, where asyncio.run would then fail.
    with ThreadPoolExecutor(1, thread_name_prefix="playwright") as thread:
        playwright = thread.submit(sync_playwright().start).result()
        try:
            chromium = _start(thread, playwright, program, start_ms)
            try:
                yield Browser(chromium, thread)
            finally:
                thread.submit(chromium.close).result()
        finally:
            thread.submit(playwright.stop).result()


def _start(
    thread: ThreadPoolExecutor, playwright: Playwright, program: str, start_ms: float
) -> Chromium:
    launch = partial(
        playwright.chromium.launch, executable_path=program, args=list(FLAGS), timeout=start_ms
    )
    try:
        return thread.submit(launch).result()
    except Error as error:
        pytest.skip(f"{program} did not start: {str(error).splitlines()[0]}")


def _look(chromium: Chromium, address: str, width: int, dark: bool) -> Seen:
    context = chromium.new_context(
        viewport={"width": width, "height": 844},
        is_mobile=width < 600,
        color_scheme="dark" if dark else "light",
    )
    complaints: list[str] = []

    def note_message(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def note_request(request: Request) -> None:
        if not request.is_navigation_request() and not request.url.startswith("data:"):
            complaints.append(f"loads {request.url}")

    try:
        page = context.new_page()
        page.on("console", note_message)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", note_request)
        page.goto(address, timeout=LOAD_MS)
        return Seen(complaints=complaints, **page.evaluate(LOOK, width))
    finally:
        context.close()
