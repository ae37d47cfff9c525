"""Several caption sources drawn from by weight, as LaCLIP and VeCLIP train.

At each visit of a sample one source is drawn by the weights, then one of the sample's texts in it.
With the original and four rewrites, weights 1 and 4 are LaCLIP's uniform draw over five texts (Fan
et al. 2023); equal weights are VeCLIP's mixture of alt text and VeCap (Lai et al. 2023). A sample
that has no text in the source drawn, or draws one of too few words, gets its original.

With `every_text` nothing is chosen among sources: a visit serves as many texts of each as its
weight says, all five in that example, for a loss over several texts of an image.

Legend: B samples of a batch, R texts served of each, U tokens of all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index import DEFAULT_SOURCE, Index
from tessera.pipeline.index.captions import CaptionTable
from tessera.pipeline.index.chained_index import ChainedIndex, fingerprint_of
from tessera.pipeline.index.text_reduction import TextReductionKind, choose_tokens, draws_needed
from tessera.pipeline.index.word_classes import read_word_classes

_NOT_MISSING, _MISSING, _SHORT = 0, 1, 2
_NUM_LOOKED_AT = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnCaptions:
    """The texts that a batch is served with."""

    rows: NDArray[np.int64]
    """[B*R] rows of the mix, those of a sample behind each other."""
    num_missing: int
    """Texts that the source drawn does not have for the sample: the original is served."""
    num_short: int
    """Texts drawn that have too few words: the original is served."""


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
        name, has_weight, weight = item.partition("=")
        try:
            pairs.append((name, float(weight) if has_weight else 1.0))
        except ValueError:
            raise ValueError(f"captions: {item!r} is not NAME or NAME=WEIGHT") from None
    names = [name for name, _ in pairs]
    if not pairs or len(set(names)) < len(names) or not all(names):
        raise ValueError(f"captions must name each of its sources once, got {' '.join(captions)}")
    if not all(weight > 0 and math.isfinite(weight) for _, weight in pairs):
        raise ValueError(f"captions: weights are finite numbers above 0, got {' '.join(captions)}")
    return tuple(pairs)


def text_counts(weights: Sequence[tuple[str, float]]) -> tuple[int, ...]:
    """Texts of each source that `every_text` serves.

    Raises:
        ValueError: a weight is no whole number.
    """
    if not all(weight.is_integer() for _, weight in weights):
        given = " ".join(f"{name}={weight:g}" for name, weight in weights)
        raise ValueError(
            f"captions: every_text serves as many texts of a source as its weight says, so weights "
            f"are whole numbers, got {given}"
        )
    return tuple(int(weight) for _, weight in weights)


class CaptionMix:
    """Caption sources of an index as one: its rows are those of the first, the second and so on."""

    def __init__(
        self,
        index: Index,
        weights: Sequence[tuple[str, float]],
        reduction: TextReductionKind = "truncate",
        *,
        every_text: bool = False,
    ) -> None:
        """Map the sources.

        Args:
            index: that has them.
            weights: (name, weight) of each; those of one source do not matter.
            reduction: what is kept of texts that are too long.
            every_text: serve as many texts of each source as its weight says, in place of one.

        Raises:
            ValueError: the index lacks a source, one belongs to another state of it, `reduction`
                is syntax and the words of a source were not tagged, or a weight is no number of
                texts.
        """
        self._index = index
        self.weights = tuple(weights)
        names = [name for name, _ in weights]
        self._drawn = frozenset(names)
        self.names = names if DEFAULT_SOURCE in names else [*names, DEFAULT_SOURCE]
        self._original = self.names.index(DEFAULT_SOURCE)
        self.tables = [index.captions(name) for name in self.names]
        self._reduction: TextReductionKind = reduction
        self.word_classes = [
            read_word_classes(table) if reduction == "syntax" else None for table in self.tables
        ]
        self._first_rows = np.cumsum([0, *(table.num_texts for table in self.tables)])
        totals = np.cumsum([weight for _, weight in weights])
        self._shares = totals / totals[-1]
        self._counts = text_counts(weights) if every_text else None
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

    def owners(self) -> list[tuple[Index, str]]:
        """Index and name of each source, in the order of the tables."""
        return [(self._index, name) for name in self.names]

    def warnings(self) -> list[str]:
        """A line for each source whose texts are class numbers, which teach a model no language."""
        return [
            f"the captions {name!r} of {table.path.parents[1]} are numbers, such as "
            f"{table.texts(np.array([0]))[0]!r}: they stand for classes in an evaluation, and a "
            "model that is trained on them learns no words. Index texts, or name another caption "
            "source"
            for name, table in zip(self.names, self.tables, strict=True)
            if name in self._drawn and _are_numbers(table)
        ]

    @property
    def first(self) -> CaptionTable:
        """The source named first."""
        return self.tables[0]

    @property
    def texts_per_sample(self) -> int:
        """R, texts that a visit serves."""
        return sum(self._counts) if self._counts else 1

    @property
    def draws_per_sample(self) -> int:
        """Uniform numbers that `draw` wants of each sample."""
        return self.texts_per_sample + 1

    def draw(self, ids: NDArray[np.int64], uniforms: NDArray[np.float64]) -> DrawnCaptions:
        """Choose the texts of each sample; a pure function.

        One text is drawn by weight. With `every_text`, the c texts that a source has fill its w
        places in their order; of more than w, w in a row are taken from a drawn one on, and the
        places that are left are missing.

        Args:
            ids: [B] rows of the index.
            uniforms: [B, `draws_per_sample`] float64 in [0, 1): for each text, and for the source
                (with `every_text`, for the first text).

        Raises:
            ValueError: a sample has no original; no index is like that.
        """
        picks, start = uniforms[:, :-1], uniforms[:, -1]
        if self._counts is None:
            wanted = [self._draw_one(ids, picks[:, 0], start)]
        else:
            wanted = [
                self._take(number, ids, start, place, count)
                for number, count in enumerate(self._counts)
                for place in range(count)
            ]
        rows, faults = (np.stack(parts, axis=1).ravel() for parts in zip(*wanted, strict=True))
        bad = faults != _NOT_MISSING
        owners, draws = np.repeat(ids, len(wanted))[bad], picks.ravel()[bad]
        rows[bad] = self.tables[self._original].draw(owners, draws)
        rows[bad] += self._first_rows[self._original]
        num_missing, num_short = (int((faults == fault).sum()) for fault in (_MISSING, _SHORT))
        return DrawnCaptions(rows=rows, num_missing=num_missing, num_short=num_short)

    def draws_needed(self, rows: NDArray[np.int64], context_length: int) -> int:
        """Uniform numbers of each text that `pack` needs to choose the tokens of long texts."""
        counts = [
            draws_needed(self._reduction, table.lengths(own_rows), context_length - 2)
            for _, table, _, own_rows in self.by_table(rows)
        ]
        return max(counts)

    def pack(
        self, rows: NDArray[np.int64], context_length: int, draws: NDArray[np.float64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids of the texts at `rows`, end to end, without padding.

        Args:
            rows: [B*R] rows of the mix.
            context_length: most tokens of one caption, SOT and EOT included.
            draws: [B*R, C] in [0, 1), C at least `draws_needed`.

        Returns:
            tokens [U] int32 and text_offsets [B*R+1] int32.

        Raises:
            ValueError: `context_length` is below 2 or beyond what the index holds.
        """
        places, parts = [], []
        for number, table, mine, own_rows in self.by_table(rows):
            choose = partial(
                choose_tokens,
                kind=self._reduction,
                draws=draws[mine],
                word_classes=self.word_classes[number],
            )
            places.append(mine)
            parts.append(table.pack(own_rows, context_length, choose))
        if len(parts) == 1:
            return parts[0]
        return _interleaved(places, parts)

    def texts(self, rows: NDArray[np.int64]) -> list[str]:
        """The texts at `rows` of the mix."""
        texts = [""] * len(rows)
        for _, table, mine, own_rows in self.by_table(rows):
            for place, text in zip(mine.tolist(), table.texts(own_rows), strict=True):
                texts[place] = text
        return texts

    def sources(self, rows: NDArray[np.int64]) -> list[str]:
        """Names of the sources that the texts at `rows` are of."""
        return [self.names[n] for n in np.searchsorted(self._first_rows, rows, side="right") - 1]

    def by_table(
        self, rows: NDArray[np.int64]
    ) -> list[tuple[int, CaptionTable, NDArray[np.int64], NDArray[np.int64]]]:
        """Numbers of tables in use, the tables, their places in `rows`, and their own rows."""
        numbers = np.searchsorted(self._first_rows, rows, side="right") - 1
        used = np.unique(numbers).tolist() or [0]
        return [
            (n, self.tables[n], mine, np.asarray(rows)[mine] - self._first_rows[n])
            for n in used
            for mine in [np.flatnonzero(numbers == n)]
        ]

    def _draw_one(
        self, ids: NDArray[np.int64], picks: NDArray[np.float64], start: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[B] rows of the texts drawn by weight, and [B] what keeps them from being served."""
        chosen = np.searchsorted(self._shares[:-1], start, side="right")
        rows, faults = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64)
        for number in np.unique(chosen).tolist():
            mine = np.flatnonzero(chosen == number)
            first, count = self.tables[number].span(ids[mine])
            own = first + np.minimum((picks[mine] * count).astype(np.int64), count - 1)
            rows[mine], faults[mine] = self._served(number, own, count > 0)
        return rows, faults

    def _take(
        self, number: int, ids: NDArray[np.int64], start: NDArray[np.float64], place: int, most: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `_draw_one`, of the text in one of the `most` places of a source."""
        first, count = self.tables[number].span(ids)
        begin = np.where(count > most, (start * count).astype(np.int64), 0)
        own = first + (begin + place) % np.maximum(count, 1)
        return self._served(number, own, place < count)

    def _served(
        self, number: int, own_rows: NDArray[np.int64], there: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the mix, meaningless without a text, and [B] the faults of the texts."""
        faults = np.where(there, _NOT_MISSING, _MISSING)
        if number != self._original:
            # Texts of too few words are stored without token ids.
            faults[there] = np.where(
                self.tables[number].lengths(own_rows[there]) == 0, _SHORT, _NOT_MISSING
            )
        return own_rows + self._first_rows[number], faults


class ChainedCaptions(CaptionMix):
    """The mixes of all indexes; rows of each follow those of the one before it."""

    def __init__(
        self,
        index: ChainedIndex,
        weights: Sequence[tuple[str, float]],
        reduction: TextReductionKind = "truncate",
        *,
        every_text: bool = False,
    ) -> None:
        """Map the sources of every index; arguments and errors are those of `CaptionMix`."""
        mixes = [
            CaptionMix(each, weights, reduction, every_text=every_text) for each in index.indexes
        ]
        super().__init__(index.indexes[0], weights, reduction, every_text=every_text)
        self._mixes, self._indexes = mixes, index.indexes
        self._first_ids = index.first_ids
        self.names = [name for mix in mixes for name in mix.names]
        self.tables = [table for mix in mixes for table in mix.tables]
        self.word_classes = [classes for mix in mixes for classes in mix.word_classes]
        self._first_rows = np.cumsum([0, *(table.num_texts for table in self.tables)])
        own = [mix.fingerprint for mix in mixes]
        self.fingerprint = fingerprint_of(own) if any(own) else ""

    def describe(self) -> list[str]:
        """As of each index, whose folder comes first."""
        pairs = zip(self._indexes, self._mixes, strict=True)
        return [f"{index.directory}: {line}" for index, mix in pairs for line in mix.describe()]

    def owners(self) -> list[tuple[Index, str]]:
        """See `CaptionMix.owners`."""
        return [owner for mix in self._mixes for owner in mix.owners()]

    def draw(self, ids: NDArray[np.int64], uniforms: NDArray[np.float64]) -> DrawnCaptions:
        """Choose the texts of each sample among those of its own index; see `CaptionMix.draw`."""
        owners = np.searchsorted(self._first_ids, ids, side="right") - 1
        rows = np.empty((len(ids), self.texts_per_sample), dtype=np.int64)
        num_missing = num_short = first_table = 0
        for number, mix in enumerate(self._mixes):
            here = np.flatnonzero(owners == number)
            if len(here):
                drawn = mix.draw(ids[here] - self._first_ids[number], uniforms[here])
                rows[here] = drawn.rows.reshape(len(here), -1) + self._first_rows[first_table]
                num_missing += drawn.num_missing
                num_short += drawn.num_short
            first_table += len(mix.names)
        return DrawnCaptions(rows=rows.ravel(), num_missing=num_missing, num_short=num_short)


def open_captions(
    index: Index | ChainedIndex,
    weights: Sequence[tuple[str, float]],
    reduction: TextReductionKind = "truncate",
    *,
    every_text: bool = False,
) -> CaptionMix:
    """The mix of an index, or of several, each of which must have all sources.

    Raises:
        ValueError: see `CaptionMix`; the message names the index.
    """
    if isinstance(index, ChainedIndex):
        return ChainedCaptions(index, weights, reduction, every_text=every_text)
    return CaptionMix(index, weights, reduction, every_text=every_text)


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


def _are_numbers(table: CaptionTable) -> bool:
    """Whether some texts from all over a table are digits without exception."""
    places = np.linspace(0, table.num_texts - 1, min(_NUM_LOOKED_AT, table.num_texts))
    texts = table.texts(places.astype(np.int64))
    return bool(texts) and all(text.strip().isdigit() for text in texts)


def _fingerprint(index: Index, names: Sequence[str]) -> str:
    records = {name: index.caption_record(name) for name in sorted(names)}
    added = [f"{name} {record.fingerprint}" for name, record in records.items() if record]
    return hashlib.sha256("\n".join(added).encode()).hexdigest() if added else ""
