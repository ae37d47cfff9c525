"""Proof that texts joined by their order belong to the rows they stand at.

A rewrite of a caption shares words with it, and hardly any with another caption. The first 4,096
rows, 16 of every 256 behind them, and the last 64 are compared. One line lost or added shifts
everything behind it, so each group of 16 must fit where it stands better than some lines earlier or
later, and each 64 rows must share far more words than shuffled ones. What can pass is a shift that
is undone within 256 rows, or by more than three lines within 1,024.

Legend: P pairs that are compared.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ALL_COMPARED = 4096
_PERIOD = 256
_GROUP = 16
_PAIRS = 64
_LEAST_PAIRS = 16
_LEAST_RATIO = 2.0
_LEAST_STANDARD_ERRORS = 4.0
"""By chance, a block of foreign texts passes with a probability of 3 in 100,000."""
_SHIFTS = (-3, -2, -1, 1, 2, 3)
_REMEDY = "Join by key or by URL, or repair the files"
_WORD = re.compile(r"\w{4,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Mean share of words that pairs have in common, 0 to 1."""

    first_row: int
    """First row compared, counted from 0."""
    num_pairs: int
    """P."""
    aligned: float
    """Of each text with the original of its own row."""
    shuffled: float
    """Of each text with the original of another row."""
    standard_errors: float
    """Their difference, in standard errors of it."""

    @property
    def is_proof(self) -> bool:
        """Whether texts belong to their rows beyond doubt."""
        return (
            self.num_pairs >= _LEAST_PAIRS
            and self.aligned >= _LEAST_RATIO * self.shuffled
            and self.standard_errors >= _LEAST_STANDARD_ERRORS
        )


class AlignmentCheck:
    """Is told the texts of one column with their originals, row after row, and judges them."""

    def __init__(self, what: str, first_row: int = 0) -> None:
        """Start.

        Args:
            what: the texts, for messages.
            first_row: of the first text; earlier rows have none.
        """
        self.what = what
        self._row = first_row
        self._group: list[tuple[str, str]] = []
        self._block: list[tuple[str, str]] = []
        self._block_start = 0
        self._last: deque[tuple[str, str]] = deque(maxlen=_PAIRS)
        self._overlaps: list[Overlap] = []

    def add(self, originals: Iterable[str], texts: Iterable[str]) -> None:
        """Add rows; both have as many.

        Raises:
            ValueError: some rows are in doubt; the message names them, and the values measured.
        """
        for pair in zip(originals, texts, strict=True):
            if self._row < _ALL_COMPARED or self._row % _PERIOD < _GROUP:
                self._group.append(pair)
                if len(self._group) == _GROUP:
                    self._add_group(self._row + 1 - _GROUP)
            self._last.append(pair)
            self._row += 1

    def finish(self) -> Overlap:
        """Judge the last rows.

        Returns:
            The block that is proven worst.

        Raises:
            ValueError: as for `add`.
        """
        last, first_row = list(self._last), self._row - len(self._last)
        for start in range(0, len(last) - _GROUP + 1, _GROUP):
            self._check_shift(last[start : start + _GROUP], first_row + start)
        self._check_block(last, first_row, self._row)
        return min(self._overlaps, key=lambda each: each.aligned - each.shuffled)

    def _add_group(self, first_row: int) -> None:
        self._check_shift(self._group, first_row)
        if not self._block:
            self._block_start = first_row
        self._block += self._group
        self._group = []
        if len(self._block) == _PAIRS:
            self._check_block(self._block, self._block_start, first_row + _GROUP)
            self._block = []

    def _check_shift(self, pairs: list[tuple[str, str]], first_row: int) -> None:
        fitting = better_shift(pairs)
        if fitting:
            side = "early" if fitting < 0 else "late"
            raise ValueError(
                f"{self.what}: rows {first_row + 1:,} to {first_row + len(pairs):,} stand "
                f"{abs(fitting)} line{'s' * (abs(fitting) > 1)} too {side}: they share "
                f"{compare(pairs).aligned:.3f} of their words with the originals beside them, and "
                f"more than {_LEAST_RATIO:g} times that with those they would come to. {_REMEDY}"
            )

    def _check_block(self, pairs: list[tuple[str, str]], first_row: int, end_row: int) -> None:
        overlap = compare(pairs, first_row)
        self._overlaps.append(overlap)
        if not overlap.is_proof:
            raise ValueError(
                f"{self.what}: rows {first_row + 1:,} to {end_row:,} are not proven to belong to "
                f"their originals: they share {overlap.aligned:.3f} of their words, with those of "
                f"other rows {overlap.shuffled:.3f} ({overlap.standard_errors:.1f} standard errors "
                f"apart, {overlap.num_pairs} pairs; wanted: {_LEAST_RATIO:g} times as many words, "
                f"{_LEAST_STANDARD_ERRORS:g} standard errors, {_LEAST_PAIRS} pairs). {_REMEDY}"
            )


def compare(pairs: list[tuple[str, str]], first_row: int = 0) -> Overlap:
    """Word overlap of (original, text) pairs, aligned and shuffled.

    Args:
        pairs: P pairs.
        first_row: where they were found.
    """
    originals, texts = ([_words(pair[side]) for pair in pairs] for side in (0, 1))
    aligned = _overlaps(originals, texts)
    half = len(pairs) // 2
    shuffled = _overlaps(originals, texts[half:] + texts[:half])
    if len(pairs) < 2:
        return Overlap(
            first_row=first_row, num_pairs=len(pairs), aligned=0, shuffled=0, standard_errors=0
        )
    error = np.sqrt((aligned.var(ddof=1) + shuffled.var(ddof=1)) / len(pairs))
    gain = float(aligned.mean() - shuffled.mean())
    return Overlap(
        first_row=first_row,
        num_pairs=len(pairs),
        aligned=float(aligned.mean()),
        shuffled=float(shuffled.mean()),
        standard_errors=gain / max(float(error), 1e-6),
    )


def better_shift(pairs: list[tuple[str, str]]) -> int:
    """By how many lines texts stand too late (too early below 0); 0 if no shift fits better.

    Args:
        pairs: consecutive (original, text) pairs.
    """
    originals, texts = ([_words(pair[side]) for pair in pairs] for side in (0, 1))
    aligned = _overlaps(originals, texts)
    for shift in _SHIFTS:
        moved = texts[max(0, shift) : len(texts) + min(0, shift)]
        kept = originals[max(0, -shift) : len(originals) - max(0, shift)]
        found = _overlaps(kept, moved)
        error = np.sqrt(found.var() / len(found) + aligned.var() / len(aligned))
        gain = found.mean() - _LEAST_RATIO * aligned.mean()
        if gain > 0 and found.mean() - aligned.mean() >= _LEAST_STANDARD_ERRORS * error:
            return shift
    return 0


def _overlaps(left: list[frozenset[str]], right: list[frozenset[str]]) -> NDArray[np.float64]:
    """[P] words in common, as a share of the smaller set; 0 where one is empty."""
    return np.array(
        [len(a & b) / max(1, min(len(a), len(b))) for a, b in zip(left, right, strict=True)],
        dtype=np.float64,
    )


def _words(text: str) -> frozenset[str]:
    """Words of at least four letters: shorter ones are in every sentence."""
    return frozenset(_WORD.findall(text.lower()))
