"""A file is never seen half written, and a failed write leaves the old one."""

import os
from pathlib import Path

import pytest

from evaluation.report import ReportData, write_report
from pipeline.durable import write_text


def test_the_content_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "file.json", []
    path.write_text("old")
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), path.read_text()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_text(path, "new")
    assert path.read_text() == "new"
    (first, seen), (folder, _) = synced
    assert Path(first).parent == tmp_path
    assert Path(first) != path
    assert seen == "old"
    assert Path(folder) == tmp_path
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    report = ReportData(
        title="t", recipe="r", command="c", created="2026-01-01", status="finished", config={}
    )
    with pytest.raises(OSError, match="No space"):
        write_report(report, path)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
