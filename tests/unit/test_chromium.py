"""The browser of the tests sees what a person would, and its absence skips a test."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chromium import Browser, open_browser

STRICT = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'


def _page(folder: Path, content: str) -> str:
    path = folder / "page.html"
    path.write_text(f"<!doctype html>{content}", encoding="utf-8")
    return path.as_uri()


def test_a_clean_page_has_no_complaints(browser: Browser, tmp_path: Path) -> None:
    seen = browser.look(_page(tmp_path, f"{STRICT}<p>hello</p>"))

    assert (seen.text, seen.complaints, seen.images) == ("hello", [], 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{STRICT}<script>document.title = 1</script>", "Content Security Policy"),
        ("<script>nothing.is.here</script>", "nothing is not defined"),
        ("<img src='missing.png'>", "missing.png"),
    ],
)
def test_what_goes_wrong_on_a_page_is_told(
    content: str, expected: str, browser: Browser, tmp_path: Path
) -> None:
    seen = browser.look(_page(tmp_path, content))

    assert expected in " ".join(seen.complaints)


def test_a_wide_page_is_wider_than_a_phone(browser: Browser, tmp_path: Path) -> None:
    viewport = "<meta name=viewport content='width=device-width'>"
    address = _page(tmp_path, f"{viewport}<div style='width:600px'>wide</div>")

    assert browser.look(address, width=390).wider > 200
    assert browser.look(address, width=1280).wider == 0


def test_an_event_loop_can_run_beside_the_browser(browser: Browser) -> None:
    async def answer() -> int:
        return 42

    assert browser.look("about:blank").text == ""
    assert asyncio.run(answer()) == 42


def test_a_browser_that_does_not_start_in_time_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "chromium"
    slow.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    slow.chmod(0o755)
    monkeypatch.setenv("CHROMIUM", str(slow))

    with pytest.raises(pytest.skip.Exception, match="did not start"):
        with open_browser(start_ms=200):
            pass
