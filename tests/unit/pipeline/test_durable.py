"""A file is never seen half written, and a failed write leaves the old one."""

import fcntl
import io
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tessera.pipeline.durable import remove_partials, work_folder, write_text
from tessera.report.run import write_report
from tessera.report.run_data import ReportData


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


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".metrics.jsonl.partial-123", "metrics.jsonl", ".hidden"):
        (tmp_path / name).write_text("x")
    under_way = tmp_path / ".other.partial-124"
    with under_way.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_partials(tmp_path)
        assert under_way.exists(), "somebody is writing it"
    remove_partials(tmp_path, "metrics.*")
    assert under_way.exists(), "it has another name"
    remove_partials(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".hidden", "metrics.jsonl"]


def test_a_work_folder_begins_empty_and_leaves_what_was_moved_away(tmp_path: Path) -> None:
    left = tmp_path / ".out.partial" / "content"
    left.mkdir(parents=True)
    (left / "of a killed process").write_text("x")
    with work_folder(tmp_path / "out") as work:
        assert list(work.iterdir()) == []
        (work / "a").write_text("made")
        with pytest.raises(RuntimeError, match="another process is making"):
            with work_folder(tmp_path / "out"):
                pass
        work.rename(tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "made"


@pytest.mark.parametrize("make", ["file", "folder"])
def test_what_is_removed_between_opening_and_locking_is_made_anew(
    make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another process does that clears up, or that ends its own work on the same thing."""
    flock, removed = fcntl.flock, []

    def late(file: io.IOBase, how: int) -> None:
        if not removed:
            removed.append(Path(f"/proc/self/fd/{file.fileno()}").readlink())
            removed[0].unlink()
            if make == "folder":
                removed[0].parent.rmdir()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    if make == "file":
        write_text(tmp_path / "file.json", "new")
        assert (tmp_path / "file.json").read_text() == "new"
    else:
        with work_folder(tmp_path / "index") as content:
            content.rename(tmp_path / "index")
            with pytest.raises(RuntimeError, match="another process"):
                work_folder(tmp_path / "index").__enter__()
    assert len(removed) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_being_written_is_not_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads, or processes of two containers, may write under the same temporary name."""
    path, errors, sizes, waits = tmp_path / "file.json", [], [], threading.Event()
    flock, fsync = fcntl.flock, os.fsync

    def write_too() -> None:
        try:
            write_text(path, "second")
        except OSError as error:
            errors.append(error)

    other = threading.Thread(target=write_too)

    def lock(file: io.IOBase, how: int) -> None:
        if threading.current_thread() is other:
            waits.set()
        flock(file, how)

    def sync(descriptor: int) -> None:
        if not sizes:
            other.start()
            assert waits.wait(10)
            sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(fcntl, "flock", lock)
    monkeypatch.setattr(os, "fsync", sync)
    write_text(path, "first")
    other.join()
    assert (sizes, errors) == ([len("first")], [])
    assert path.read_text() == "second"
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]


def test_a_file_that_takes_a_removed_ones_name_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer has given the first its own name, and writes the next, when the lock is tried."""
    partial, flock = tmp_path / ".file.json.partial-7", fcntl.flock
    partial.write_text("first")

    def late(file: io.IOBase, how: int) -> None:
        partial.replace(tmp_path / "file.json")
        partial.write_text("next")
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    remove_partials(tmp_path)
    assert partial.read_text() == "next"


@pytest.mark.parametrize("backwards", [False, True])
def test_whoever_comes_while_a_work_folder_goes_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, backwards: bool
) -> None:
    """In whatever order the file system lists what is to go."""
    unlink, scandir, came = os.unlink, os.scandir, []

    class Listing(list):
        def __enter__(self) -> "Listing":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def listed(path: Any = ".") -> Listing:
        with scandir(path) as entries:
            return Listing(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    with ExitStack() as stack:

        def come(path: Any, **options: Any) -> None:
            unlink(path, **options)
            if Path(path).name == "lock" and not came:
                came.append(stack.enter_context(work_folder(tmp_path / "out")))
                (came[0] / "a").write_text("made")

        monkeypatch.setattr(os, "unlink", come)
        monkeypatch.setattr(os, "scandir", listed)
        with work_folder(tmp_path / "out") as content:
            (content / "a").write_text("made before")
        assert (came[0] / "a").read_text() == "made"
        with pytest.raises(RuntimeError, match="another process"):
            work_folder(tmp_path / "out").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_work_folder_that_goes_while_it_is_made_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, went = os.mkdir, []

    def late(path: Any, *more: Any) -> None:
        if not went:
            went.append(path)
            raise FileExistsError(17, "File exists", str(path))
        mkdir(path, *more)

    monkeypatch.setattr(os, "mkdir", late)
    with work_folder(tmp_path / "out") as content:
        assert content.is_dir()
    assert went == [tmp_path / ".out.partial"]


@pytest.mark.parametrize("link", [False, True])
def test_what_is_no_folder_in_the_place_of_a_work_folder_is_named(
    tmp_path: Path, *, link: bool
) -> None:
    place = tmp_path / ".out.partial"
    if link:
        place.symlink_to(tmp_path / "gone")
    else:
        place.write_text("a file")
    with pytest.raises(FileExistsError, match=r"\.out\.partial"):
        work_folder(tmp_path / "out").__enter__()
