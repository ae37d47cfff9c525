"""The loader's statistics add up and name the right bottleneck."""

import time
from collections.abc import Iterator

import pytest

from tessera.pipeline.stats import LoaderStats, StageStats, timed


def test_work_and_both_waits_are_kept_apart() -> None:
    stage = StageStats()

    def slow_source() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    def worked(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            with stage.working(4):
                time.sleep(0.01)
            yield item

    taken = []
    start = time.perf_counter()
    for item in timed(worked(timed(slow_source(), into=stage)), out_of=stage):
        taken.append(item)
        time.sleep(0.03)  # the consumer has no room for so long
    assert taken == [0, 1, 2]
    assert stage.num_samples == 12
    assert stage.input_wait_s >= 0.06
    assert stage.busy_s >= 0.03
    assert stage.output_wait_s >= 0.09
    # Nothing is counted twice, however slow the machine is.
    counted = stage.input_wait_s + stage.busy_s + stage.output_wait_s
    assert counted <= time.perf_counter() - start


def stats(**seconds: tuple[float, float, float]) -> LoaderStats:
    """A loader whose stages worked, waited for input, and waited for room so long."""
    made = LoaderStats()
    for name, (busy, into, out) in seconds.items():
        setattr(made, name, StageStats(busy_s=busy, input_wait_s=into, output_wait_s=out))
    return made


def test_the_thread_that_never_waits_is_the_bottleneck() -> None:
    slow_disk = stats(read=(9.9, 0, 0.1), decode=(4, 5.5, 0), mask=(0.3, 0, 0), pack=(0.2, 0, 0))
    found = slow_disk.slowest()
    assert (found.thread, found.stage) == ("reading", "read")
    assert found.busy_share == pytest.approx(0.99)
    assert "read (the reading thread works 99% of the time" in str(found)


def test_within_a_thread_it_is_the_longest_stage() -> None:
    # Reading did more than any one other stage, but its thread had time to spare.
    busy = stats(read=(5, 0, 5), decode=(4, 0, 0), mask=(4.5, 0, 0), pack=(1.5, 0, 0))
    found = busy.slowest()
    assert (found.thread, found.stage) == ("packing", "mask")
    assert found.stage_share == pytest.approx(0.45)
    assert busy.slowest().stage == "mask"


def test_a_consumer_that_hardly_waits_has_a_loader_that_keeps_up() -> None:
    slow_model = stats(read=(1, 0, 9), decode=(3, 0, 0), pack=(0, 0, 7))
    slow_model.wait_s, slow_model.use_s = 0.1, 9.9
    assert slow_model.slowest().keeps_up
    assert str(slow_model.slowest()).startswith("none, the loader keeps up")
    slow_model.wait_s = 5.0
    assert not slow_model.slowest().keeps_up


def test_steps_made_one_at_a_time_have_the_stage_with_most_work() -> None:
    assert stats(read=(1, 0, 0), decode=(3, 0, 0), mask=(0.1, 0, 0)).slowest().stage == "decode"


def test_before_any_work_nothing_is_named() -> None:
    assert LoaderStats().slowest().stage == ""
    assert str(LoaderStats().slowest()) == "nothing was done yet"


def test_a_snapshot_stands_still_and_the_difference_is_what_came_after() -> None:
    running = stats(read=(1, 0, 0), decode=(3, 0.5, 0))
    running.decode.num_replaced = 2
    before = running.snapshot()
    running.decode.busy_s += 2
    running.decode.num_samples += 64
    running.decode.num_replaced += 1
    running.read.num_replaced += 1
    running.wait_s += 0.25
    assert before.decode.busy_s == 3
    after = running.since(before)
    assert (after.decode.busy_s, after.decode.num_samples) == (2, 64)
    assert after.read.busy_s == 0
    assert after.num_replaced == 2
    assert running.num_replaced == 4
    assert after.wait_s == 0.25
