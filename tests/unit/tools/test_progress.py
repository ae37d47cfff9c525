from __future__ import annotations

import sys

import pytest

from tessera.tools.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_away_from_a_terminal_a_line_comes_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Progress("encoding", "pictures", 4000, clock=clock) as progress:
        for _ in range(4):
            clock.now += 5
            progress(500)
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 1,000 of 4,000 pictures (25%), 30.0 s left",
        "encoding: 2,000 of 4,000 pictures (50%), 20.0 s left",
    ]


def test_without_a_total_the_line_counts(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress("drawing", "pairs", clock=clock)
    clock.now = 11
    progress(7)
    assert capsys.readouterr().err == "drawing: 7 pairs\n"


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress("encoding", "pictures", 10, silent=True, clock=clock)
    clock.now = 100
    progress(5)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_the_total(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("encoding", "pictures", 10) as progress:
        progress(10)
    shown = capsys.readouterr().err
    assert "encoding: 100%" in shown
    assert "10.0/10.0" in shown
