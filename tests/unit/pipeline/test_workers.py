"""Work in processes: in order, a bounded number ahead, and a killed process is noticed."""

import os
import signal
from collections.abc import Iterator

import pytest

from tessera.pipeline.workers import map_in_processes


def square(number: int) -> int:
    return number * number


def die_at_5(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_come_in_order_and_work_is_taken_as_it_is_needed() -> None:
    taken: list[int] = []

    def work() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    results = map_in_processes(square, work(), 2)
    assert next(results) == 0
    assert len(taken) <= 8
    assert list(results) == [number**2 for number in range(1, 40)]


def test_a_killed_worker_ends_the_work_with_the_likely_cause() -> None:
    with pytest.raises(RuntimeError, match=r"killed, perhaps for want of memory.*than 2"):
        list(map_in_processes(die_at_5, range(40), 2))
