"""LaCLIP's files: originals (CSV of path and caption, or plain text) and aligned rewrites.

Line k of every rewrite file belongs to row k of the originals. LaCLIP's own loader passes over CSV
rows whose path does not end in .png, .jpg or .jpeg without using up a line: meant for a header, it
shifts all pairs behind a `.webp`. Here both ways to count are tried, and only the one is taken that
the words of the texts prove.

Source: Fan et al. 2023, arXiv 2305.20088, and the reading rules of its released loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Literal

from tessera.pipeline.caption_sources.alignment import AlignmentCheck
from tessera.pipeline.caption_sources.rows import ROWS_AT_ONCE, RowBatch
from tessera.pipeline.caption_sources.tables import stem_of
from tessera.pipeline.caption_sources.text_lines import count_lines, csv_rows, read_lines

_LOADED = (".png", ".jpg", ".jpeg")
_NUM_SHOWN = 5
Rule = Literal["every row", "all rows but the first", "rows that LaCLIP's loader reads"]
"""Which rows of the originals have a line in the rewrite files."""
Original = tuple[str, str, str]
"""Where it was found, its key, and its caption."""


@dataclass(kw_only=True, slots=True)
class LaclipReader:
    """Originals and the rewrites that belong to them by their order."""

    files: tuple[Path, ...]
    """The originals, `.csv` or `.txt`, and one or more files of rewrites."""
    stem: bool = True
    """The key is the last part of the path without its suffix; else column 1 as it is."""
    rule: Rule | None = field(default=None, init=False)
    """Which rows have a line; known once `batches` has begun."""
    overlap: list[float] = field(default_factory=list, init=False)
    """Word overlap of each rewrite file with the originals where it is proven worst."""

    @property
    def originals(self) -> Path:
        """The first file."""
        return self.files[0]

    def batches(self) -> Iterator[RowBatch]:
        """See `Reader`; nothing is yielded before counts and alignment are proven."""
        num_lines = self._num_lines()
        self.rule = self._proven_rule(num_lines)
        rows = self._rows(self.rule)
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
        return self.originals.suffix.lower() == ".csv"

    def _num_lines(self) -> int:
        if len(self.files) < 2:
            raise ValueError(
                "LaCLIP's format is one file of originals and at least one of rewrites"
            )
        counts = {path: count_lines(path) for path in self.files[1:]}
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
                f"{self.originals} has another number of rows ({listed}) than the rewrites have "
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
        if not self._has_keys:
            return {"every row": count_lines(self.originals)}, []
        num_rows = num_loaded = 0
        has_header = False
        passed_over: list[str] = []
        for line, row in csv_rows(self.originals):
            if len(row) < 2:
                raise ValueError(f"{self.originals}, line {line}: no caption behind {row[0]!r}")
            loaded = row[0].endswith(_LOADED)
            has_header |= not num_rows and not loaded
            num_rows += 1
            num_loaded += loaded
            if not loaded and len(passed_over) < _NUM_SHOWN:
                passed_over.append(f"line {line} ({row[0][-60:]})")
        counts: dict[Rule, int] = {"every row": num_rows, "all rows but the first": num_rows - 1}
        if not num_loaded or num_loaded == num_rows - has_header:
            return counts, []
        counts["rows that LaCLIP's loader reads"] = num_loaded
        return counts, passed_over

    def _rows(self, rule: Rule) -> Iterator[Original]:
        if not self._has_keys:
            for number, line in enumerate(read_lines(self.originals), 1):
                yield f"line {number}", "", line
            return
        key_of: Callable[[str], str] = stem_of if self.stem else str
        for number, (line, row) in enumerate(csv_rows(self.originals)):
            if rule == "all rows but the first" and number == 0:
                continue
            if rule == "rows that LaCLIP's loader reads" and not row[0].endswith(_LOADED):
                continue
            yield f"line {line}", key_of(row[0]), row[1]

    def _prove(self, rule: Rule) -> list[float]:
        checks = [AlignmentCheck(str(path)) for path in self.files[1:]]
        lines = [_again_and_again(path) for path in self.files[1:]]
        captions = (caption for _, _, caption in self._rows(rule))
        while chunk := list(islice(captions, ROWS_AT_ONCE)):
            for check, texts in zip(checks, lines, strict=True):
                check.add(chunk, islice(texts, len(chunk)))
        return [check.finish().aligned for check in checks]


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
