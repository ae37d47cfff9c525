"""Sides are timed in processes of their own, and one that fails does not take the others along."""

import os
import time

import pytest

from tessera.pipeline.crops import CropConfig
from tessera.pipeline.masking import MaskConfig
from tessera.tools.benchmarks.ladder import WHOLE_STEP, ladder
from tessera.tools.benchmarks.side import Setting, UnavailableError, Work
from tessera.tools.benchmarks.turns import Entrant, Turn, take_turns

SETTING = Setting(
    reference="", shards=(), batch_size=4, image_size=16, patch_size=8, crop=CropConfig(),
    mask=MaskConfig(), num_workers=1, device="cpu",
)  # fmt: skip


TURN = 5


class Ready:
    """Makes two batches ahead while others have their turn; each takes it 20 ms."""

    ahead = 2

    def __init__(self, setting: Setting) -> None:
        self.ready = 0
        self.batch_size = setting.batch_size

    def run(self, num_batches: int) -> Work:
        time.sleep(0.02 * max(0, num_batches - self.ready))
        self.ready = self.ahead if num_batches == TURN else 0
        known = {"process": os.getpid(), "cores": len(os.sched_getaffinity(0))}
        return Work(num_images=num_batches * self.batch_size, known=known)

    def close(self) -> None:
        pass


def broken(_setting: Setting) -> Ready:
    raise UnavailableError("that package is not installed")


class DiesLater(Ready):
    def run(self, num_batches: int) -> Work:
        if num_batches == TURN:
            os._exit(9)
        return super().run(num_batches)


def test_what_lies_ready_does_not_count_and_a_failing_side_is_left_out() -> None:
    entrants = {
        "good": Entrant(build=Ready, setting=SETTING, one_core=True),
        "missing": Entrant(build=broken, setting=SETTING),
        "dies": Entrant(build=DiesLater, setting=SETTING),
    }
    results = take_turns(entrants, num_batches=TURN, repeats=3)
    assert results.left_out["missing"] == "that package is not installed"
    assert "died" in results.left_out["dies"]
    (name,) = results.turns
    turns = results.turns[name]
    assert [turn.num_images for turn in turns] == [20, 20, 20]
    # Five batches at 20 ms each, none of them made before the clock started.
    assert all(turn.seconds >= 0.1 for turn in turns)
    assert {turn.known["cores"] for turn in turns} == {1}
    assert turns[0].known["process"] != os.getpid()
    assert all(turn.memory_bytes > 1e6 for turn in turns)


def test_the_ladder_adds_stages_up_and_ends_with_the_measured_whole() -> None:
    def turn(decode_s: float) -> Turn:
        known = {
            "busy_s": {"read": 0.1, "decode": decode_s, "mask": 0.2},
            "stage_bytes": {"read": 100 * 50_000},
        }
        return Turn(num_images=100, seconds=decode_s + 0.5, cpu_s=1, memory_bytes=1, known=known)

    read, decode, mask, whole = ladder([turn(0.7), turn(0.6), turn(5.0)], limit=250.0)
    assert read.images_per_s == pytest.approx(1000)
    assert read.mb_per_s == pytest.approx(50)
    assert read.share_of_limit is None
    assert decode.us_per_image == pytest.approx(7000)
    assert decode.share_of_limit == pytest.approx(0.5)
    assert mask.images_per_s == pytest.approx(100)
    assert whole.name == WHOLE_STEP
    assert whole.images_per_s == pytest.approx(100 / 1.2)
