"""Pictures that look alike, by the distance of their difference hashes.

Legend: R rows, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

MAX_DISTANCE = 3
"""Bits by which two picture hashes may differ and still be found without comparing all pairs."""
_BITS = 64


def near_repeats(hashes: NDArray[np.uint64], max_distance: int) -> NDArray[np.bool_]:
    """Which picture hashes differ in at most `max_distance` bits from an earlier one that is kept.

    The first of a row is kept; each next one is dropped if a kept one lies within the distance. So
    no two kept ones are that close, and every dropped one is close to a kept one.

    Exact, without comparing all pairs: the 64 bits are cut into 2 * max_distance blocks (3 for
    a distance of 1). Two hashes that differ in at most `max_distance` bits agree in all other
    blocks, so for every choice of that many blocks it suffices to compare those that agree in them
    (Manku, Jain and Das Sarma, WWW 2007).

    Args:
        hashes: [R] 64-bit hashes in the order of the rows. Takes about 160 bytes a row.
        max_distance: 0 .. 3.
    """
    distinct, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    appearance = np.argsort(first)  # distinct values in the order in which they first appear
    ordered = distinct[appearance]
    dropped = _greedy(_close_pairs(ordered, max_distance), len(ordered))
    of_distinct = np.empty(len(ordered), dtype=bool)
    of_distinct[appearance] = dropped
    is_first = np.zeros(len(hashes), dtype=bool)
    is_first[first] = True
    return ~is_first | of_distinct[group]


def _close_pairs(values: NDArray[np.uint64], max_distance: int) -> NDArray[np.int64]:
    """[P, 2] places (earlier, later) of distinct values within the distance, by the later one."""
    found = [np.empty((0, 2), np.int64)]
    if max_distance:
        num_blocks = max(3, 2 * max_distance)
        edges = [_BITS * block // num_blocks for block in range(num_blocks + 1)]
        blocks = [((1 << high) - (1 << low)) for low, high in pairwise(edges)]
        for chosen in combinations(blocks, num_blocks - max_distance):
            found += _pairs_that_agree(values, np.uint64(sum(chosen)), max_distance)
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[np.argsort(pairs[:, 1], kind="stable")]


def _pairs_that_agree(
    values: NDArray[np.uint64], mask: np.uint64, max_distance: int
) -> Iterator[NDArray[np.int64]]:
    """Pairs within the distance among the values that agree in the bits of a mask."""
    masked = values & mask
    order = np.argsort(masked, kind="stable")
    run = np.cumsum(np.append(False, masked[order[1:]] != masked[order[:-1]]))
    here = np.arange(len(order))
    step = 1
    while len(here):
        here = here[here < len(order) - step]
        here = here[run[here] == run[here + step]]
        one, other = order[here], order[here + step]
        close = np.bitwise_count(values[one] ^ values[other]) <= max_distance
        yield np.sort(np.stack([one[close], other[close]], axis=1), axis=1)
        step += 1


def _greedy(pairs: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Which values are dropped; `pairs` come in the order of the later one."""
    dropped = np.zeros(count, dtype=bool)
    for earlier, later in pairs.tolist():
        if not dropped[earlier]:
            dropped[later] = True
    return dropped
