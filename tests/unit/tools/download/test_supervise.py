"""The supervisor brings a download to its end over what ends, hangs, loses and damages it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import download_shards
from tests.download_shards import make_download
from tools.download import supervise
from tools.download.finished import is_complete, load_job
from tools.download.lock import exclusive
from tools.download.processes import MARK, kill_all_of, living
from tools.download.supervise import DownloadFailedError, Limits, Stopped, run_download

ROOT = Path(__file__).resolve().parents[4]
ALL = "good: 0 1 2 3 4"


@pytest.fixture
def download(tmp_path: Path) -> Iterator[Path]:
    make_download(tmp_path)
    yield tmp_path
    kill_all_of(tmp_path)


def command(folder: Path, *starts: str) -> tuple[str, ...]:
    """The stand-in for img2dataset, and what each of its starts does."""
    plan = folder / "plan.txt"
    plan.write_text("".join(f"{each}\n" for each in starts), encoding="utf-8")
    return (sys.executable, download_shards.__file__, str(plan))


def limits(stall_s: float | None = 30.0, min_free_bytes: int = 0) -> Limits:
    return Limits(stall_s=stall_s, min_free_bytes=min_free_bytes, poll_s=0.05)


def run(folder: Path, *starts: str, **changes: float) -> supervise.Outcome:
    return run_download(
        load_job(folder),
        folder,
        limits=dataclasses.replace(limits(), **changes),  # type: ignore[arg-type]
        command=command(folder, *starts),
    )


def num_starts(folder: Path) -> int:
    path = folder / "starts"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def wait_for(what: Callable[[], object]) -> None:
    give_up = time.monotonic() + 20
    while not what():
        assert time.monotonic() < give_up, "it did not happen in 20 s"
        time.sleep(0.02)


def test_counts_of_a_smooth_download(download: Path) -> None:
    outcome = run(download, ALL)
    assert (outcome.num_rows, outcome.num_successes, outcome.num_shards) == (38, 26, 5)
    assert outcome.failures == {"not_found": 4, "timeout": 4, "damaged_image": 4}
    assert (outcome.num_starts, outcome.num_quarantined, outcome.num_lost_workers) == (1, 0, 0)
    assert outcome.stored_bytes == sum(
        path.stat().st_size for path in (download / "shards").glob("*.tar")
    )


def test_nothing_starts_when_all_is_done(download: Path) -> None:
    run(download, ALL)
    assert run(download).num_starts == 0
    assert num_starts(download) == 1


def test_goes_on_when_the_process_ends_early(download: Path) -> None:
    assert run(download, "good: 0 1", "good: 2", "good: 3 4").num_starts == 3


def test_a_damaged_shard_goes_to_quarantine_and_is_done_again(download: Path) -> None:
    outcome = run(download, "good: 0 1 2 3", "the tar is cut: 4", "good: 4")
    assert outcome.num_quarantined == 1
    assert (download / "quarantine" / "00004-0.tar").is_file()
    assert is_complete(download)


def test_gives_up_when_starting_again_brings_nothing(download: Path) -> None:
    bad = "a row is missing: 4"
    with pytest.raises(DownloadFailedError, match=r"1 shards of 5 .* 3 starts \(first: 4\)"):
        run(download, "good: 0 1 2 3", bad, bad, bad, ALL)
    assert num_starts(download) == 4
    assert run(download, "good: 4").num_shards == 5


def test_a_hang_ends_in_a_new_start(download: Path) -> None:
    began = time.monotonic()
    outcome = run(download, "hang", ALL, stall_s=4)
    assert outcome.num_starts == 2
    assert 4 < time.monotonic() - began < 30
    wait_for(lambda: not living(download))


def test_a_process_that_does_not_end_after_the_last_shard_is_ended(
    download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "_END_S", 0.3)
    began = time.monotonic()
    assert run(download, "and hang: 0 1 2 3 4", stall_s=300).num_starts == 1
    assert time.monotonic() - began < 20
    wait_for(lambda: not living(download))


def test_waiting_for_a_killed_worker_ends_long_before_a_stall(download: Path) -> None:
    began = time.monotonic()
    # Shards 0 to 3 are done, the worker of 4 was killed: twice the deadline of 0.5 s is enough.
    outcome = run(download, "good: 0 1 2 3", "lose a worker", "good: 4", stall_s=300)
    assert outcome.num_lost_workers == 1
    assert time.monotonic() - began < 30


def test_a_killed_worker_does_not_end_the_work_of_the_others(download: Path) -> None:
    # Four shards are missing and one worker is lost: three may still be at work.
    began = time.monotonic()
    outcome = run(download, "good: 0", "lose a worker", "good: 1 2 3 4", stall_s=5)
    assert outcome.num_starts == 3
    assert time.monotonic() - began > 5


def test_a_full_disk_stops_with_nothing_half_done(download: Path) -> None:
    with pytest.raises(DownloadFailedError, match="no room is left"):
        run(download, "good: 0", "no space")
    wait_for(lambda: not living(download))
    assert run(download, "good: 1 2 3 4").num_starts == 1


def test_a_job_that_cannot_be_run_is_not_tried_again(download: Path) -> None:
    job = dataclasses.replace(load_job(download), distributor="ray")
    with pytest.raises(ValueError, match="ray"):
        run_download(job, download, limits=limits())


def test_too_little_free_space_stops_before_the_start(download: Path) -> None:
    with pytest.raises(DownloadFailedError, match="no room is left"):
        run(download, ALL, min_free_bytes=1 << 60)
    assert num_starts(download) == 0


def test_partial_shards_are_cleared_away(download: Path) -> None:
    with pytest.raises(DownloadFailedError, match="no room"):
        run(download, "no statistics: 0 1", "no space")
    assert list((download / "shards").glob("*.tar")) == []


def test_other_options_are_refused_by_name(download: Path) -> None:
    run(download, ALL)
    other = dataclasses.replace(load_job(download), image_size=224, threads=9)
    with pytest.raises(ValueError, match=r"image_size was 256, now 224\)"):
        run_download(other, download, limits=limits(), command=command(download))
    assert load_job(download).image_size == 256


def test_options_that_do_not_change_the_result_may_change(download: Path) -> None:
    other = dataclasses.replace(load_job(download), threads=9, retries=0, deadline_s=1.0)
    run_download(other, download, limits=limits(), command=command(download, ALL))
    assert load_job(download).threads == 9


def test_two_at_a_time_are_refused_with_the_holder(download: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(download)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ValueError, match=f"process {holder.pid} on"):
            run(download, ALL)
    finally:
        holder.kill()
        holder.wait()
    assert run(download, ALL).num_shards == 5  # the system let go of the lock


_HOLD = """
import pathlib, sys, time
from tools.download.lock import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_may_be_held_by_the_caller(download: Path) -> None:
    with exclusive(download):
        assert run(download, ALL).num_shards == 5


def test_processes_left_by_an_earlier_run_are_killed(download: Path) -> None:
    left = subprocess.Popen(
        ["sleep", "60"], env={**os.environ, MARK: str(download)}, start_new_session=True
    )
    wait_for(lambda: living(download))
    run(download, ALL)
    assert left.wait(timeout=10) == -signal.SIGKILL


def test_processes_of_other_downloads_are_left_alone(download: Path, tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: str(tmp_path / "other")})
    try:
        wait_for(lambda: living(tmp_path / "other"))
        run(download, ALL)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_that_was_started(download: Path, number: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    timer = threading.Thread(target=_signal_when_running, args=(download, number))
    timer.start()
    expected = KeyboardInterrupt if number == signal.SIGINT else Stopped
    with pytest.raises(expected):
        run(download, "hang", ALL)
    timer.join()
    wait_for(lambda: not living(download))
    assert run(download, ALL).num_shards == 5


def _signal_when_running(folder: Path, number: int) -> None:
    wait_for(lambda: living(folder))
    os.kill(os.getpid(), number)


def test_stall_leaves_time_for_rows_that_all_run_into_their_deadline(tmp_path: Path) -> None:
    job = make_download(tmp_path, threads=64, deadline_s=30.0, retries=2)
    assert supervise.default_stall_s(job) >= 2 * 3 * 30
    few = dataclasses.replace(job, threads=1)
    assert supervise.default_stall_s(few) >= 100 * 3 * 30
    remote = dataclasses.replace(job, shards="s3://bucket/shards")
    assert supervise.default_stall_s(remote) == 1800
