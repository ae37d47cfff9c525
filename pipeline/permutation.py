"""A permutation of any size that is computed place by place and never stored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.counter_random import mix

ROUNDS = 6


def permute(
    places: NDArray[np.int64], size: int, round_keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Where a permutation of 0 .. size - 1 sends some places.

    A Feistel network over the smallest even number of bits that covers `size`, walked until it
    lands inside (cycle walking; Black and Rogaway, CT-RSA 2002).

    Args:
        places: [B] int64, each below `size`.
        size: at least 1.
        round_keys: [ROUNDS] what tells this permutation from others.

    Returns:
        [B] int64.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    result = _feistel(places.astype(np.uint64), half_bits, round_keys)
    outside = result >= np.uint64(size)
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, round_keys)
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


def _feistel(
    value: NDArray[np.uint64], half_bits: np.uint64, round_keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & mask
    for round_key in round_keys:
        left, right = right, left ^ (mix(right + round_key) & mask)
    return (left << half_bits) | right
