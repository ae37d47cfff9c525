"""Random numbers without a generator's state: every draw is a hash of what it is for.

A draw made for a sample depends on (seed, pass, sample id, purpose) and on nothing else, so the
crop, the caption and the mask anchors of a sample are the same whatever the batch size, the
number of threads or the number of ranks, and a resumed run needs no random state.

Legend: B samples, C draws for each sample.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STREAM = np.uint64(0xD1B54A32D192ED03)


class Purpose(IntEnum):
    """What a draw decides. The values are part of a run's identity: never renumber them."""

    ORDER = 1
    CROP = 2
    CAPTION = 3
    MASK = 4
    SHARD_ORDER = 5
    WINDOW_ORDER = 6
    AUGMENT = 7
    TEXT = 8
    SET = 9


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words: a bijection whose output bits all depend on all input bits.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def keys(
    seed: int, passes: ArrayLike, sample_ids: ArrayLike, purpose: Purpose
) -> NDArray[np.uint64]:
    """Hash (seed, pass, sample id, purpose) to one 64-bit key for each sample.

    Args:
        seed: the run's seed; any integer, taken modulo 2**64.
        passes: [B] or a scalar, how often the whole set was served before.
        sample_ids: [B] or a scalar, rows of the index.
        purpose: what the draw decides.

    Returns:
        [B] uint64.
    """
    head = np.array([(seed + 1) & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    key = mix(head * _GOLDEN + np.uint64(purpose))
    key = mix(key + np.atleast_1d(np.asarray(passes, dtype=np.uint64)) * _STREAM)
    return mix(key + np.atleast_1d(np.asarray(sample_ids, dtype=np.uint64)) * _GOLDEN)


def uniforms(
    seed: int, passes: ArrayLike, sample_ids: ArrayLike, purpose: Purpose, count: int
) -> NDArray[np.float64]:
    """Draw numbers in [0, 1) for each sample.

    Args:
        seed: the run's seed.
        passes: [B] or a scalar.
        sample_ids: [B] or a scalar.
        purpose: what the draw decides.
        count: C, how many numbers a sample needs. Asking for more leaves the first ones as they
            were.

    Returns:
        [B, C] float64, multiples of 2**-53.
    """
    key = keys(seed, passes, sample_ids, purpose)
    counter = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    words = mix(key[:, None] + counter[None, :])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
