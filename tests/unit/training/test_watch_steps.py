"""A step that takes far too long says why; the clock leaves no time out."""

from __future__ import annotations

import time

import pytest

from tessera.training.metrics import DEVICE, StepRecord
from tessera.training.timeline import Timeline
from tessera.training.watch_steps import DATA, SlowSteps, StepClock


def record(step: int, seconds: float, **parts: float) -> StepRecord:
    named = {"data": DATA, "device": DEVICE}
    return StepRecord(
        step=step, samples=step, loss=1.0, lr=0.1, logit_scale=1.0, step_s=seconds,
        data_wait_s=parts.get("data", 0.0), data_bottleneck="read",
        parts_s={named.get(name, name): part for name, part in parts.items()},
    )  # fmt: skip


def usual(first: int, count: int) -> list[StepRecord]:
    return [
        record(k, 0.5, data=0.1, forward=0.1, backward=0.25) for k in range(first, first + count)
    ]


def test_steps_fill_the_time_of_the_run_and_their_parts_fill_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timeline = Timeline()
    clock = StepClock(timeline)
    laps = []
    for wait in (1, 5):
        with timeline.during("forward"):
            now[0] += wait
        laps.append(clock.lap())
        with timeline.during("checkpoints"):
            now[0] += 2
        with timeline.during(DEVICE):
            now[0] += 3
    laps.append(clock.lap())
    # The wait for the device is no step's own: the log shares it out.
    assert laps == [
        (1, {"forward": 1}),
        (7, {"checkpoints": 2, "forward": 5}),
        (2, {"checkpoints": 2}),
    ]


@pytest.mark.parametrize(
    ("slow", "reason"),
    [
        ({"data": 7.6, "forward": 0.1, "backward": 0.3}, "data, the loader by its stage read"),
        ({"data": 0.1, "forward": 0.1, "checkpoints": 7.8}, "checkpoints"),
        ({"data": 0.1, "forward": 0.1, "backward": 0.3, "device": 7.5}, "waiting for the device"),
        ({"data": 0.1, "forward": 0.1, "backward": 0.3}, "not timed"),
    ],
)  # fmt: skip
def test_a_slow_step_names_the_part_that_grew(slow: dict[str, float], reason: str) -> None:
    watch = SlowSteps(10)
    assert watch.explain(usual(1, 20)) is None
    message = watch.explain([record(21, 8.0, **slow)])
    assert message is not None
    assert message.startswith("step 21 took 8.00 s, 16 times the median: 7.")
    assert reason in message


def test_with_several_ranks_the_wait_for_the_slowest_is_thought_of() -> None:
    watch = SlowSteps(10, world_size=4)
    watch.explain(usual(1, 20))
    message = watch.explain([record(21, 9.0, backward=8.9)])
    assert "with 4 ranks includes the wait for the slowest" in (message or "")


def test_the_first_steps_and_steps_a_little_slow_say_nothing() -> None:
    watch = SlowSteps(10)
    assert watch.explain([record(1, 60.0, forward=60.0), *usual(2, 5)]) is None
    assert watch.explain([*usual(7, 20), record(27, 4.9, forward=4.9)]) is None


def test_messages_keep_a_distance_and_count_what_they_kept_back() -> None:
    now = [0.0]
    watch = SlowSteps(10, pause_s=60, clock=lambda: now[0])
    watch.explain(usual(1, 100))
    slow = [record(k, 8.0, forward=7.9) for k in (101, 102)]
    assert "1 more slow steps" in (watch.explain(slow) or "")
    now[0] = 59.0
    assert watch.explain(slow) is None
    now[0] = 61.0
    assert "2 more slow steps" in (watch.explain([slow[0], *usual(103, 3)]) or "")
