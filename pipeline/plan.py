"""What a step consists of, computed without touching a file.

Which samples, which window of each picture, which of its captions, which noise for its mask.

Legend: B pairs of this rank, N patches of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.pipeline import device_random
from tessera.pipeline.augment import DRAWS_PER_IMAGE
from tessera.pipeline.counter_random import Purpose, keys, uniforms
from tessera.pipeline.crops import DRAWS_PER_WINDOW, CropConfig, centre_windows, draw_windows
from tessera.pipeline.index import Index
from tessera.pipeline.index.caption_mix import CaptionMix, DrawnCaptions
from tessera.pipeline.index.chained_index import ChainedIndex
from tessera.pipeline.index.dataset import Dataset
from tessera.pipeline.order import Order, Visits

_CALIBRATION_BATCHES = 4
_CALIBRATION_SAMPLES = 4096
"""So many are enough for any batch size: a threshold is one number, and every rank decodes them."""


class Plan(Protocol):
    """The steps of a loader as pure functions."""

    def visits(self, step: int) -> Visits | None:
        """The samples of a step on this rank; None after the last step."""
        ...

    def replacements(self, step: int, slots: NDArray[np.int64], attempt: int) -> Visits | None:
        """What to serve instead of the bad samples in some slots; None to leave them out."""
        ...

    def calibration(self) -> Iterator[Visits]:
        """Samples from which a mask finds its threshold, the same on every rank; in parts."""
        ...

    def windows(self, visits: Visits) -> NDArray[np.int32]:
        """[B, 4] crop windows (y, x, height, width)."""
        ...

    def draw_captions(self, visits: Visits) -> DrawnCaptions:
        """The texts of each sample, one or more."""
        ...

    def augmentation(self, visits: Visits) -> NDArray[np.float64]:
        """[B, DRAWS_PER_IMAGE] uniform numbers, for flips and colours."""
        ...

    def upcoming_shards(self, step: int) -> list[int]:
        """Shards worth fetching for a step and those behind it, the most urgent first."""
        ...

    def text_draws(self, visits: Visits, count: int) -> NDArray[np.float64]:
        """[B, count] uniform numbers, for the tokens that long captions keep."""
        ...

    def noise(self, visits: Visits, num_patches: int, device: torch.device) -> Tensor:
        """[B, N] float32 in [0, 1), for the mask; the same bits on every device."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Endless, shuffled, augmented; every draw keyed by (seed, pass, sample id, purpose)."""

    index: Index | ChainedIndex
    """Where widths and heights come from."""
    captions: CaptionMix
    """Texts of the samples, and how many of them a visit serves."""
    order: Order
    """Which sample comes when."""
    crop: CropConfig
    """Ranges of the crop window."""
    batch_size: int
    """Pairs in the global batch."""
    rank: int
    """This process, 0 .. world_size - 1."""
    world_size: int
    """Processes that share the global batch."""

    def visits(self, step: int) -> Visits:
        """This rank's share of the global batch."""
        return self.order.visits(step, self.batch_size).part(self.rank, self.world_size)

    def replacements(self, step: int, slots: NDArray[np.int64], attempt: int) -> Visits:
        """The samples of the same slots some steps later; they come again in their own turn.

        A pure function of its arguments: a resumed run, or one of another number of ranks, replaces
        alike. Within a pass it is never a sample of the same batch.
        """
        return self.visits(step + attempt).take(slots)

    def calibration(self) -> Iterator[Visits]:
        """The first visits of the run, those of four global batches but at most 4,096."""
        count = min(_CALIBRATION_BATCHES * self.batch_size, _CALIBRATION_SAMPLES)
        first = self.order.visits(0, count)
        # No part is larger than what a rank decodes at once.
        size = self.batch_size // self.world_size
        for start in range(0, count, size):
            yield first.take(slice(start, start + size))

    def windows(self, visits: Visits) -> NDArray[np.int32]:
        """Random resized crops."""
        draws = self._draw(visits, Purpose.CROP, DRAWS_PER_WINDOW)
        ids = visits.sample_ids
        return draw_windows(self.index.width[ids], self.index.height[ids], draws, self.crop)

    def draw_captions(self, visits: Visits) -> DrawnCaptions:
        """Fresh draws among the texts of each sample."""
        draws = self._draw(visits, Purpose.CAPTION, self.captions.draws_per_sample)
        return self.captions.draw(visits.sample_ids, draws)

    def text_draws(self, visits: Visits, count: int) -> NDArray[np.float64]:
        """Fresh draws for each visit."""
        return self._draw(visits, Purpose.TEXT, count)

    def noise(self, visits: Visits, num_patches: int, device: torch.device) -> Tensor:
        """Fresh noise for each visit; rounded down, so that it stays below 1 in float32."""
        if device.type != "cpu":
            key = keys(self.order.seed, visits.passes, visits.sample_ids, Purpose.MASK)
            return device_random.noise(key, num_patches, device)
        draws = self._draw(visits, Purpose.MASK, num_patches)
        return torch.from_numpy((np.floor(draws * 2**24) * 2.0**-24).astype(np.float32))

    def augmentation(self, visits: Visits) -> NDArray[np.float64]:
        """Fresh draws for each visit."""
        return self._draw(visits, Purpose.AUGMENT, DRAWS_PER_IMAGE)

    def upcoming_shards(self, step: int) -> list[int]:
        """Those of the order's window and of the next one."""
        return self.order.upcoming_shards(step, self.batch_size)

    def _draw(self, visits: Visits, purpose: Purpose, count: int) -> NDArray[np.float64]:
        return uniforms(self.order.seed, visits.passes, visits.sample_ids, purpose, count)


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Once through a set in the index's order: centre crop, first caption, last batch short."""

    dataset: Dataset
    """What is evaluated."""
    captions: CaptionMix
    """The first text of each sample in the first source is served."""
    batch_size: int
    """Pairs in a batch."""

    def visits(self, step: int) -> Visits | None:
        """The next samples of the data set."""
        first = step * self.batch_size
        ids = self.dataset.sample_ids(first, first + self.batch_size)
        if not len(ids):
            return None
        return Visits(sample_ids=ids, passes=np.zeros_like(ids))

    def replacements(self, step: int, slots: NDArray[np.int64], attempt: int) -> None:
        """A score is of the samples themselves: a bad one is left out and counted."""
        return

    def calibration(self) -> Iterator[Visits]:
        """Nothing is masked, so nothing is to be found."""
        return iter(())

    def windows(self, visits: Visits) -> NDArray[np.int32]:
        """The largest centred square."""
        ids = visits.sample_ids
        index = self.dataset.index
        return centre_windows(index.width[ids], index.height[ids])

    def draw_captions(self, visits: Visits) -> DrawnCaptions:
        """The first text of each sample."""
        first = np.zeros((len(visits.sample_ids), self.captions.draws_per_sample))
        return self.captions.draw(visits.sample_ids, first)

    def augmentation(self, visits: Visits) -> NDArray[np.float64]:
        """Nothing is changed, so nothing is drawn."""
        return np.zeros((len(visits.sample_ids), DRAWS_PER_IMAGE))

    def upcoming_shards(self, step: int) -> list[int]:
        """The shards of this batch and of the next: they follow one another."""
        first = step * self.batch_size
        ids = self.dataset.sample_ids(first, first + 2 * self.batch_size)
        return np.unique(self.dataset.index.shard[ids]).tolist()

    def text_draws(self, visits: Visits, count: int) -> NDArray[np.float64]:
        """A long caption loses its tail, so nothing is drawn."""
        return np.zeros((len(visits.sample_ids), count))

    def noise(self, visits: Visits, num_patches: int, device: torch.device) -> Tensor:
        """Nothing is masked, so nothing is drawn."""
        return torch.zeros(len(visits.sample_ids), num_patches, device=device)
