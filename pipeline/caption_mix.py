"""Several caption sources drawn from by weight, as LaCLIP and VeCLIP train.

At each visit of a sample one source is drawn by the weights, then one of the sample's texts in it.
With the original and four rewrites, weights 1 and 4 are LaCLIP's uniform draw over five texts (Fan
et al. 2023); equal weights are VeCLIP's mixture of alt text and VeCap (Lai et al. 2023). A sample
that has no text in the source drawn, or draws one of too few words, gets its original.

Legend: B samples of a batch, U tokens of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.captions import CaptionTable
from pipeline.index import DEFAULT_SOURCE, Index
from pipeline.text_reduction import TextReductionKind, choose_tokens, draws_needed
from pipeline.word_classes import read_word_classes

DRAWS_PER_CAPTION = 2
"""Uniform numbers that `CaptionMix.draw` wants of each sample."""
_NOT_MISSING, _MISSING, _SHORT = 0, 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnCaptions:
    """The texts that a batch is served with."""

    rows: NDArray[np.int64]
    """[B] rows of the mix."""
    num_missing: int
    """Samples without a text in the source drawn for them: they get their original."""
    num_short: int
    """Samples whose text drawn has too few words: they get their original."""


def parse_weights(captions: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Names and weights of the sources in a configuration.

    Args:
        captions: `NAME` or `NAME=WEIGHT`; a weight is 1 where none is given.

    Returns:
        (name, weight) of each, in their order.

    Raises:
        ValueError: there is none, a name comes twice, or a weight is no number above 0.
    """
    pairs = []
    for item in captions:
        name, _, weight = item.partition("=")
        try:
            pairs.append((name, float(weight) if weight else 1.0))
        except ValueError:
            raise ValueError(f"captions: {item!r} is not NAME or NAME=WEIGHT") from None
    names = [name for name, _ in pairs]
    if not pairs or len(set(names)) < len(names) or not all(names):
        raise ValueError(f"captions must name each of its sources once, got {list(captions)}")
    if not all(weight > 0 and math.isfinite(weight) for _, weight in pairs):
        raise ValueError(f"captions: weights are finite numbers above 0, got {list(captions)}")
    return tuple(pairs)


class CaptionMix:
    """Caption sources of an index as one: its rows are those of the first, the second and so on."""

    def __init__(
        self,
        index: Index,
        weights: Sequence[tuple[str, float]],
        reduction: TextReductionKind = "truncate",
    ) -> None:
        """Map the sources.

        Args:
            index: that has them.
            weights: (name, weight) of each; those of one source do not matter.
            reduction: what is kept of texts that are too long.

        Raises:
            ValueError: the index lacks a source, one belongs to another state of it, or `reduction`
                is syntax and the words of a source were not tagged.
        """
        self._index = index
        self.weights = tuple(weights)
        names = [name for name, _ in weights]
        self._names = names if DEFAULT_SOURCE in names else [*names, DEFAULT_SOURCE]
        self._original = self._names.index(DEFAULT_SOURCE)
        self._tables = [index.captions(name) for name in self._names]
        self._reduction: TextReductionKind = reduction
        self._word_classes = [
            read_word_classes(table) if reduction == "syntax" else None for table in self._tables
        ]
        self._first_rows = np.cumsum([0, *(table.num_texts for table in self._tables)])
        totals = np.cumsum([weight for _, weight in weights])
        self._shares = totals / totals[-1]
        self.fingerprint = _fingerprint(index, names)
        """SHA-256 (hex) of the added sources in use; empty if the original is the only one."""

    def describe(self) -> list[str]:
        """What the added sources are: a line each, with their share of the draws and coverage."""
        shares = np.diff(self._shares, prepend=0.0)
        lines = []
        for (name, _), share in zip(self.weights, shares, strict=True):
            record = self._index.caption_record(name)
            if record:
                lines.append(
                    f"caption source {name}: {share:.1%} of the draws; {record.num_texts:,} texts "
                    f"for {record.coverage:.1%} of the samples; the original is served for the "
                    f"others, and for {record.counts.get('num_short', 0):,} texts of too few words"
                )
        return lines

    @property
    def first(self) -> CaptionTable:
        """The source named first."""
        return self._tables[0]

    def draw(self, ids: NDArray[np.int64], uniforms: NDArray[np.float64]) -> DrawnCaptions:
        """Choose one text of each sample; a pure function.

        Args:
            ids: [B] rows of the index.
            uniforms: [B, 2] float64 in [0, 1): for the text, and for the source.

        Raises:
            ValueError: a sample has no original; no index is like that.
        """
        chosen = np.searchsorted(self._shares[:-1], uniforms[:, 1], side="right")
        rows = np.empty(len(ids), dtype=np.int64)
        fault = np.full(len(ids), _NOT_MISSING)
        for number, table in enumerate(self._tables[: len(self.weights)]):
            mine = np.flatnonzero(chosen == number)
            if number != self._original and len(mine):
                fault[mine] = table_faults = self._faults(table, ids[mine], uniforms[mine, 0])
                good = mine[table_faults == _NOT_MISSING]
                drawn = table.draw(ids[good], uniforms[good, 0])
                rows[good] = drawn + self._first_rows[number]
        rest = (chosen == self._original) | (fault != _NOT_MISSING)
        original = self._tables[self._original].draw(ids[rest], uniforms[rest, 0])
        rows[rest] = original + self._first_rows[self._original]
        return DrawnCaptions(
            rows=rows,
            num_missing=int((fault == _MISSING).sum()),
            num_short=int((fault == _SHORT).sum()),
        )

    def draws_needed(self, rows: NDArray[np.int64], context_length: int) -> int:
        """Uniform numbers of each sample that `pack` needs to choose the tokens of long texts."""
        counts = [
            draws_needed(self._reduction, table.lengths(own_rows), context_length - 2)
            for _, table, _, own_rows in self._by_table(rows)
        ]
        return max(counts)

    def pack(
        self, rows: NDArray[np.int64], context_length: int, draws: NDArray[np.float64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids of the texts at `rows`, end to end, without padding.

        Args:
            rows: [B] rows of the mix.
            context_length: most tokens of one caption, SOT and EOT included.
            draws: [B, C] in [0, 1), C at least `draws_needed`.

        Returns:
            tokens [U] int32 and text_offsets [B+1] int32.

        Raises:
            ValueError: `context_length` is below 2 or beyond what the index holds.
        """
        places, parts = [], []
        for number, table, mine, own_rows in self._by_table(rows):
            choose = partial(
                choose_tokens,
                kind=self._reduction,
                draws=draws[mine],
                word_classes=self._word_classes[number],
            )
            places.append(mine)
            parts.append(table.pack(own_rows, context_length, choose))
        if len(parts) == 1:
            return parts[0]
        return _interleaved(places, parts)

    def texts(self, rows: NDArray[np.int64]) -> list[str]:
        """The texts at `rows` of the mix."""
        texts = [""] * len(rows)
        for _, table, mine, own_rows in self._by_table(rows):
            for place, text in zip(mine.tolist(), table.texts(own_rows), strict=True):
                texts[place] = text
        return texts

    def sources(self, rows: NDArray[np.int64]) -> list[str]:
        """Names of the sources that the texts at `rows` are of."""
        numbers = np.searchsorted(self._first_rows, rows, side="right") - 1
        return [self._names[number] for number in numbers]

    def _by_table(
        self, rows: NDArray[np.int64]
    ) -> list[tuple[int, CaptionTable, NDArray[np.int64], NDArray[np.int64]]]:
        """Numbers of tables in use, the tables, their places in `rows`, and their own rows."""
        numbers = np.searchsorted(self._first_rows, rows, side="right") - 1
        used = np.unique(numbers).tolist() or [0]
        return [
            (n, self._tables[n], mine, np.asarray(rows)[mine] - self._first_rows[n])
            for n in used
            for mine in [np.flatnonzero(numbers == n)]
        ]

    @staticmethod
    def _faults(
        table: CaptionTable, ids: NDArray[np.int64], uniforms: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """[B] what keeps the text that would be drawn from being served."""
        counts = np.diff(table.rows(ids)[1])
        there = counts > 0
        fault = np.where(there, _NOT_MISSING, _MISSING)
        drawn = table.draw(ids[there], uniforms[there])
        # Texts of too few words are stored without token ids.
        empty = table.token_offsets[drawn + 1] == table.token_offsets[drawn]
        fault[there] = np.where(empty, _SHORT, _NOT_MISSING)
        return fault


def _interleaved(
    places: Sequence[NDArray[np.int64]],
    parts: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Packed texts of several tables, put into the order of the batch."""
    lengths = np.empty(sum(map(len, places)), dtype=np.int64)
    starts = np.empty_like(lengths)
    base = 0
    for mine, (tokens, offsets) in zip(places, parts, strict=True):
        lengths[mine] = np.diff(offsets)
        starts[mine] = offsets[:-1] + base
        base += len(tokens)
    ends = np.cumsum(lengths)
    source = np.arange(base) + np.repeat(starts - ends + lengths, lengths)
    tokens = np.concatenate([tokens for tokens, _ in parts])[source]
    return tokens, np.concatenate([[0], ends]).astype(np.int32)


def _fingerprint(index: Index, names: Sequence[str]) -> str:
    records = [(name, index.caption_record(name)) for name in sorted(names)]
    added = [f"{name} {record.fingerprint}" for name, record in records if record]
    return hashlib.sha256("\n".join(added).encode()).hexdigest() if added else ""
