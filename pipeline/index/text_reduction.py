"""Which tokens a caption keeps that is longer than the text tower reads.

CLIPA (Li et al. 2023, section 3.2) trains on 8 or 16 tokens a caption and compares four ways to get
there. A budget is the tokens that are left for the caption itself: two fewer than the context
length, which SOT and EOT take. Captions within the budget are left alone by all of them. FLIP's
"prioritised" text masking (Li et al. 2023, table 1c), which drops padding before it drops words at
random, is `random` here, since nothing is padded.

Legend: B captions, l tokens of a caption, m the budget, L most tokens of a long caption.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TextReductionKind = Literal["truncate", "random", "shuffle", "block", "syntax"]
"""truncate: the first tokens. random: any, in their order. shuffle: any, in any order, as CLIPA's
JAX code has it. block: tokens in a row from a random place. syntax: nouns before adjectives, verbs
and everything else, in their order."""

ChooseTokens = Callable[
    [NDArray[np.int64], NDArray[np.int64], int], tuple[NDArray[np.int64], NDArray[np.int64]]
]
"""From starts [B], lengths [B] and a budget to what `choose_tokens` returns."""


def truncated(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], budget: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first tokens of each caption; arguments and result as of `choose_tokens`."""
    kept = np.minimum(lengths, budget)
    offsets = np.cumsum(kept) - kept
    return np.arange(kept.sum()) + np.repeat(starts - offsets, kept), kept


def draws_needed(kind: TextReductionKind, lengths: NDArray[np.int64], budget: int) -> int:
    """Uniform numbers that `choose_tokens` wants of each caption.

    Args:
        kind: how captions are shortened.
        lengths: [B] tokens of each caption.
        budget: m.
    """
    if kind in ("truncate", "syntax") or not (lengths > budget).any():
        return 0
    return 1 if kind == "block" else int(lengths.max())


def choose_tokens(
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    budget: int,
    kind: TextReductionKind,
    draws: NDArray[np.float64],
    word_classes: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the tokens of a batch of captions.

    Args:
        starts: [B] where each caption starts in the stored ids.
        lengths: [B] how many ids it has.
        budget: m, at least 0.
        kind: how captions are shortened.
        draws: [B, C] in [0, 1), C from `draws_needed`.
        word_classes: class of every stored id, for `syntax`: 0 noun, 1 adjective, 2 verb, 3 other.

    Returns:
        Places in the stored ids, caption after caption, and how many each caption keeps [B].

    Raises:
        ValueError: `syntax` without word classes.
    """
    places, kept = truncated(starts, lengths, budget)
    offsets = np.cumsum(kept) - kept
    long = np.flatnonzero(lengths > budget)
    if kind == "truncate" or not len(long):
        return places, kept
    if kind == "block":
        first = (draws[long, 0] * (lengths[long] - budget + 1)).astype(np.int64)
        chosen = first[:, None] + np.arange(budget)
    else:
        ranks = _ranks(kind, starts[long], lengths[long], draws[long], word_classes)
        chosen = np.argsort(ranks, axis=1, kind="stable")[:, :budget]
        if kind != "shuffle":
            chosen.sort(axis=1)
    places[(offsets[long, None] + np.arange(budget)).ravel()] = (
        starts[long, None] + chosen
    ).ravel()
    return places, kept


def _ranks(
    kind: TextReductionKind,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    draws: NDArray[np.float64],
    word_classes: NDArray[np.uint8] | None,
) -> NDArray[np.float64]:
    """[B, L] what each token is sorted by, infinite behind a caption's end."""
    place = np.arange(int(lengths.max()))
    inside = place < lengths[:, None]
    if kind != "syntax":
        return np.where(inside, draws[:, : len(place)], np.inf)
    if word_classes is None:
        raise ValueError("syntax needs the word classes of the captions")
    stored = np.minimum(starts[:, None] + place, len(word_classes) - 1)
    return np.where(inside, word_classes[stored], np.inf)
