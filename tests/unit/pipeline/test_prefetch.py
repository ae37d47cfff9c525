"""The prefetching thread passes items and errors on, and ends when told."""

import threading
import time
from collections.abc import Iterator

import pytest

from tessera.pipeline.prefetch import Prefetched


def test_items_come_in_order() -> None:
    assert list(Prefetched(iter(range(50)), 3, "test")) == list(range(50))


def test_an_error_comes_at_its_place_and_stays() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    ahead = Prefetched(items(), 2, "test")
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(KeyError, match="lost"):
            next(ahead)


def test_it_runs_ahead_no_further_than_told() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = Prefetched(items(), 4, "test")
    time.sleep(0.3)
    assert len(made) == 5, "four wait, one is in hand"
    ahead.close()


def test_closing_ends_an_endless_thread() -> None:
    def items() -> Iterator[int]:
        while True:
            yield 0

    ahead = Prefetched(items(), 2, "tessera-endless")
    next(ahead)
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name == "tessera-endless"]
    with pytest.raises(StopIteration):
        next(ahead)
