"""How long the sequences of a timed batch are: captions of a data set, patches of a mask.

Both are spread the same way in every batch, by quantiles and not by draws, so that all sides and
all runs do the same work.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index.dataset import open_dataset

CC12M_MEAN_TOKENS = 20.0
"""Mean tokens of a caption, start and end included, as the project's budget takes CC12M's."""
_CC12M_SD_TOKENS = 16.3
"""Spread of the tokens, assumed: as a caption's words are said to spread in CC12M (20.2 +- 16.3),
which our notes do not confirm. `captions_of` has the lengths of an index itself."""
_FEWEST_TOKENS = 3
_MASK_SPREAD = 0.4
"""Counts of visible patches go this far below and above their mean: at 50% they are 59 to 137 of
196, and 137 is the most that min_mask_ratio 0.3 allows."""


def full_captions(batch_size: int, context_length: int) -> tuple[int, ...]:
    """Every caption as long as the context."""
    return (context_length,) * batch_size


def cc12m_captions(batch_size: int, context_length: int) -> tuple[int, ...]:
    """Quantiles of a log-normal distribution with CC12M's mean and standard deviation.

    What exceeds the context is cut, and all lengths are scaled so that the mean is the one of
    CC12M again.
    """
    variance = math.log(1 + (_CC12M_SD_TOKENS / CC12M_MEAN_TOKENS) ** 2)
    normal = NormalDist(-variance / 2, math.sqrt(variance))
    shares = (np.arange(batch_size) + 0.5) / batch_size
    shape = np.exp([normal.inv_cdf(share) for share in shares])
    low, high = 0.0, float(context_length) ** 2
    for _ in range(60):
        middle = (low + high) / 2
        lengths = np.clip(np.round(shape * middle), _FEWEST_TOKENS, context_length)
        low, high = (middle, high) if lengths.mean() < CC12M_MEAN_TOKENS else (low, middle)
    return _mixed(np.clip(np.round(shape * high), _FEWEST_TOKENS, context_length))


def captions_of(reference: str, batch_size: int, context_length: int) -> tuple[int, ...]:
    """Quantiles of the captions of an index's samples, of 10,000 of them where there are more.

    Raises:
        FileNotFoundError: there is no such index.
        ValueError: it is damaged.
    """
    dataset = open_dataset(reference)
    ids = dataset.of_samples(np.arange(dataset.index.num_samples))
    captions = dataset.index.captions()
    rows, _ = captions.rows(ids[:: max(1, len(ids) // 10_000)])
    _, offsets = captions.pack(rows, context_length)
    shares = (np.arange(batch_size) + 0.5) / batch_size
    return _mixed(np.quantile(np.diff(offsets), shares, method="nearest"))


def visible_patches(batch_size: int, num_patches: int, mask_ratio: float) -> tuple[int, ...]:
    """Visible patches of each image: in all exactly what the ratio leaves, evenly spread."""
    if mask_ratio == 0:
        return (num_patches,) * batch_size
    total = round(batch_size * num_patches * (1 - mask_ratio))
    shares = (np.arange(batch_size) + 0.5) / batch_size
    spread = 1 + _MASK_SPREAD * (2 * shares - 1)
    edges = np.round(np.concatenate([[0], np.cumsum(spread)]) * total / batch_size)
    return _mixed(np.diff(edges))


def _mixed(lengths: NDArray[np.floating] | NDArray[np.integer]) -> tuple[int, ...]:
    """In an order that no kernel could make use of."""
    order = np.random.default_rng(0).permutation(len(lengths))
    return tuple(int(length) for length in lengths[order])
