r"""Texts joined by their order, and the proof that they belong to the rows they stand at.

LaCLIP's files are originals (CSV of path and caption, or plain text) and aligned rewrites: line k
of every rewrite file belongs to row k of the originals. LaCLIP's own loader passes over CSV rows
whose path does not end in .png, .jpg or .jpeg without using up a line: meant for a header, it
shifts all pairs behind a `.webp`. Here both ways to count are tried, and only the one is taken that
the words of the texts prove. Source: Fan et al. 2023, arXiv 2305.20088, and the reading rules of
its released loader.

The proof: a rewrite of a caption shares words with it, and hardly any with another caption. The
first 4,096 rows, 16 of every 256 behind them, and the last 64 are compared. One line lost or added
shifts everything behind it, so each group of 16 must fit where it stands better than some lines
earlier or later, and each 64 rows must share far more words than shuffled ones. What can pass is a
shift that is undone within 256 rows, or by more than three lines within 1,024.

Legend: P pairs that are compared.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index.caption_readers import ROWS_AT_ONCE, RowBatch, stem_of
from tessera.pipeline.index.cells import is_storable
from tessera.pipeline.index.delimited import DelimitedTable
from tessera.pipeline.index.foreign_tables import Problem, Row

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
_LOADED = (".png", ".jpg", ".jpeg")
_NUM_SHOWN = 5
Rule = Literal["every row", "all rows but the first", "rows that LaCLIP's loader reads"]
"""Which rows of the originals have a line in the rewrite files."""
Pairs = list[tuple[str, str]]
"""[P] original and text."""


class Overlap(NamedTuple):
    """Mean share of words that P pairs have in common, 0 to 1."""

    num_pairs: int
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
        self._group: Pairs = []
        self._block: Pairs = []
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

    def finish(self) -> float:
        """Judge the last rows.

        Returns:
            Words shared with the originals in the block that is proven worst.

        Raises:
            ValueError: as for `add`.
        """
        last, first_row = list(self._last), self._row - len(self._last)
        for start in range(0, len(last) - _GROUP + 1, _GROUP):
            self._check_shift(last[start : start + _GROUP], first_row + start)
        self._check_block(last, first_row, self._row)
        return min(self._overlaps, key=lambda each: each.aligned - each.shuffled).aligned

    def _add_group(self, first_row: int) -> None:
        self._check_shift(self._group, first_row)
        if not self._block:
            self._block_start = first_row
        self._block += self._group
        self._group = []
        if len(self._block) == _PAIRS:
            self._check_block(self._block, self._block_start, first_row + _GROUP)
            self._block = []

    def _check_shift(self, pairs: Pairs, first_row: int) -> None:
        shift, aligned = better_shift(pairs)
        if shift:
            raise ValueError(
                f"{self.what}: rows {first_row + 1:,} to {first_row + len(pairs):,} stand "
                f"{abs(shift)} line{'s' * (abs(shift) > 1)} too {'early' if shift < 0 else 'late'}:"
                f" they share {aligned:.3f} of their words with the originals beside them, and "
                f"more than {_LEAST_RATIO:g} times that with those they would come to. {_REMEDY}"
            )

    def _check_block(self, pairs: Pairs, first_row: int, end_row: int) -> None:
        overlap = compare(pairs)
        self._overlaps.append(overlap)
        if not overlap.is_proof:
            raise ValueError(
                f"{self.what}: rows {first_row + 1:,} to {end_row:,} are not proven to belong to "
                f"their originals: they share {overlap.aligned:.3f} of their words, with those of "
                f"other rows {overlap.shuffled:.3f} ({overlap.standard_errors:.1f} standard errors "
                f"apart, {overlap.num_pairs} pairs; wanted: {_LEAST_RATIO:g} times as many words, "
                f"{_LEAST_STANDARD_ERRORS:g} standard errors, {_LEAST_PAIRS} pairs). {_REMEDY}"
            )


def compare(pairs: Pairs) -> Overlap:
    """Word overlap of pairs, aligned and shuffled."""
    if len(pairs) < 2:
        return Overlap(len(pairs), 0, 0, 0)
    originals, texts = _words(pairs)
    half = len(pairs) // 2
    aligned = _shares(originals, texts)
    shuffled = _shares(originals, texts[half:] + texts[:half])
    error = np.sqrt((aligned.var(ddof=1) + shuffled.var(ddof=1)) / len(pairs))
    gain = float(aligned.mean() - shuffled.mean()) / max(float(error), 1e-6)
    return Overlap(len(pairs), float(aligned.mean()), float(shuffled.mean()), gain)


def better_shift(pairs: Pairs) -> tuple[int, float]:
    """By how many lines texts stand too late (too early below 0), and their overlap as they stand.

    Args:
        pairs: consecutive ones. The shift is 0 if none fits better.
    """
    originals, texts = _words(pairs)
    aligned = _shares(originals, texts)
    for shift in _SHIFTS:
        moved = texts[max(0, shift) : len(texts) + min(0, shift)]
        kept = originals[max(0, -shift) : len(originals) - max(0, shift)]
        found = _shares(kept, moved)
        error = np.sqrt(found.var() / len(found) + aligned.var() / len(aligned))
        gain = found.mean() - _LEAST_RATIO * aligned.mean()
        if gain > 0 and found.mean() - aligned.mean() >= _LEAST_STANDARD_ERRORS * error:
            return shift, float(aligned.mean())
    return 0, float(aligned.mean())


def _words(pairs: Pairs) -> tuple[list[frozenset[str]], list[frozenset[str]]]:
    """Words of originals and of texts; those below four letters are in every sentence."""
    originals, texts = (
        [frozenset(_WORD.findall(pair[side].lower())) for pair in pairs] for side in (0, 1)
    )
    return originals, texts


def _shares(left: list[frozenset[str]], right: list[frozenset[str]]) -> NDArray[np.float64]:
    """[P] words in common, as a share of the smaller set; 0 where one is empty."""
    return np.array(
        [len(a & b) / max(1, min(len(a), len(b))) for a, b in zip(left, right, strict=True)],
        dtype=np.float64,
    )


@dataclass(kw_only=True, slots=True)
class LaclipReader:
    """Originals and the rewrites that belong to them by their order."""

    files: tuple[Path, ...]
    """The originals, `.csv` or `.txt`, and one or more files of rewrites."""
    stem: bool = True
    """The key is the last part of the path without its suffix; else column 1 as it is."""
    overlap: list[float] = field(default_factory=list, init=False)
    """Word overlap of each rewrite file with the originals where it is proven worst."""

    def batches(self) -> Iterator[RowBatch]:
        """See `Reader`; nothing is yielded before counts and alignment are proven."""
        rows = self._rows(self._proven_rule(self._num_lines()))
        texts = zip(*(_again_and_again(path) for path in self.files[1:]), strict=False)
        pairs = zip(rows, texts, strict=False)
        first_row = 0
        while chunk := list(islice(pairs, ROWS_AT_ONCE)):
            yield RowBatch(
                first_row=first_row,
                texts=[list(lines) for _, lines in chunk],
                keys=[key for (_, key, _), _ in chunk] if self._has_keys else [],
                where=[where for (where, _, _), _ in chunk],
            )
            first_row += len(chunk)

    @property
    def _has_keys(self) -> bool:
        return self.files[0].suffix.lower() == ".csv"

    def _num_lines(self) -> int:
        if len(self.files) < 2:
            raise ValueError(
                "LaCLIP's format is one file of originals and at least one of rewrites"
            )
        counts = {path: sum(1 for _ in read_lines(path)) for path in self.files[1:]}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{path} has {count:,}" for path, count in counts.items())
            raise ValueError(f"the rewrite files differ in their number of lines: {listed}")
        num_lines = next(iter(counts.values()))
        if not num_lines:
            raise ValueError(f"{self.files[1]} is empty")
        return num_lines

    def _proven_rule(self, num_lines: int) -> Rule:
        """The first rule whose count fits and whose pairs belong together."""
        counts, passed_over = self._counts()
        fitting: list[Rule] = [rule for rule, n in counts.items() if n and n % num_lines == 0]
        if not fitting:
            listed = "; ".join(f"{rule}: {n:,}" for rule, n in counts.items())
            raise ValueError(
                f"{self.files[0]} has another number of rows ({listed}) than the rewrites have "
                f"lines ({num_lines:,}), and no multiple of it{_skipped(passed_over)}"
            )
        doubts = []
        for rule in fitting:
            try:
                self.overlap = self._prove(rule)
            except ValueError as error:
                doubts.append(f"taking {rule}, {error}")
            else:
                return rule
        raise ValueError("; ".join(doubts) + _skipped(passed_over))

    def _counts(self) -> tuple[dict[Rule, int], list[str]]:
        """Rows by rule, and those that LaCLIP's loader would pass over."""
        num_rows = num_loaded = 0
        has_header = False
        passed_over: list[str] = []
        for where, path, _ in self._originals():
            loaded = path.endswith(_LOADED)
            has_header |= not num_rows and not loaded
            num_rows += 1
            num_loaded += loaded
            if not loaded and len(passed_over) < _NUM_SHOWN:
                passed_over.append(f"{where} ({path[-60:]})")
        counts: dict[Rule, int] = {"every row": num_rows}
        if not self._has_keys:
            return counts, []
        counts["all rows but the first"] = num_rows - 1
        if not num_loaded or num_loaded == num_rows - has_header:
            return counts, []
        counts["rows that LaCLIP's loader reads"] = num_loaded
        return counts, passed_over

    def _rows(self, rule: Rule) -> Iterator[tuple[str, str, str]]:
        """Where each row with a line is, its key, and its caption."""
        key_of: Callable[[str], str] = stem_of if self.stem else str
        for number, (where, path, caption) in enumerate(self._originals()):
            if rule == "all rows but the first" and number == 0:
                continue
            if rule == "rows that LaCLIP's loader reads" and not path.endswith(_LOADED):
                continue
            yield where, key_of(path), caption

    def _originals(self) -> Iterator[tuple[str, str, str]]:
        """Where each original is, its path (empty in a file of lines), and its caption.

        Raises:
            ValueError: a row cannot be read; the message names the line.
        """
        file = self.files[0]
        if not self._has_keys:
            for number, line in enumerate(read_lines(file), 1):
                yield f"line {number}", "", line
            return
        table = DelimitedTable(files=(file,), delimiter=",", encoding="utf-8-sig", header=False)
        for row in table.rows(["1", "2"]):
            if isinstance(row, Row):
                yield row.where, str(row.values[0]), str(row.values[1])
                continue
            foreign = row.problem == Problem.ENCODING
            detail = "not UTF-8; convert it, for instance with iconv" if foreign else row.detail
            raise ValueError(f"{file}, {row.where}: {detail}")

    def _prove(self, rule: Rule) -> list[float]:
        checks = [AlignmentCheck(str(path)) for path in self.files[1:]]
        lines = [_again_and_again(path) for path in self.files[1:]]
        captions = (caption for _, _, caption in self._rows(rule))
        while chunk := list(islice(captions, ROWS_AT_ONCE)):
            for check, texts in zip(checks, lines, strict=True):
                check.add(chunk, islice(texts, len(chunk)))
        return [check.finish() for check in checks]


def read_lines(path: Path) -> Iterator[str]:
    r"""The lines of a UTF-8 file without their ends; a byte order mark is left out.

    They end at `\n`, `\r` or `\r\n`, as LaCLIP wrote and read them with `open(...)`:
    `str.splitlines` would also split at U+2028, U+0085 and five more, and shift all texts behind.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not UTF-8; the message says which.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not is_storable(line):
                msg = f"{path}, line {number}: not UTF-8: {line[:80]!a}"
                raise ValueError(f"{msg}; convert the file, for instance with iconv")
            yield line.removesuffix("\n")


def _again_and_again(path: Path) -> Iterator[str]:
    """Lines of a file, from the start again at its end: several images may share a text."""
    return chain.from_iterable(map(read_lines, repeat(path)))


def _skipped(passed_over: list[str]) -> str:
    if not passed_over:
        return ""
    return (
        f". LaCLIP's own loader passes over rows that do not end in {', '.join(_LOADED)}, such as "
        f"{', '.join(passed_over)}: pairs behind them are shifted there"
    )
