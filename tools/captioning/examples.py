"""Examples of rewriting that a prompt shows: pairs of a file, or two captions of one image.

Legend: P pairs or groups, E examples of a prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index.caption_readers import TableReader
from tessera.pipeline.index.dataset import open_dataset

DRAWS_PER_EXAMPLE = 3
"""Uniform numbers that choose one example: its group, its input, its output."""
_MAX_GROUPS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleSet:
    """What examples are drawn from."""

    name: str
    """The file, or the index."""
    groups: tuple[tuple[str, ...], ...]
    """P groups of texts that say the same in different words."""
    has_direction: bool
    """Whether a group is (input, output); otherwise any two of it are drawn."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all texts."""
        return hashlib.sha256(json.dumps(self.groups).encode()).hexdigest()

    def draw(self, uniforms: NDArray[np.float64]) -> list[tuple[str, str]]:
        """Examples of one prompt, no group twice; a pure function.

        Args:
            uniforms: [E, 3] in [0, 1).

        Returns:
            E pairs of input and output.
        """
        places = without_replacement(uniforms[:, 0], len(self.groups))
        if self.has_direction:
            return [(self.groups[place][0], self.groups[place][1]) for place in places]
        pairs = []
        for place, row in zip(places, uniforms[:, 1:], strict=True):
            group = self.groups[place]
            source, target = without_replacement(row, len(group))
            pairs.append((group[source], group[target]))
        return pairs


def without_replacement(uniforms: NDArray[np.float64], count: int) -> list[int]:
    """Different numbers below `count`, one for each uniform; all orders are equally likely."""
    chosen: list[int] = []
    for num_taken, uniform in enumerate(uniforms.tolist()):
        place = int(uniform * (count - num_taken))
        for other in sorted(chosen):
            place += place >= other
        chosen.append(place)
    return chosen


def open_examples(place: str, num_examples: int) -> ExampleSet:
    """Read examples.

    Args:
        place: a `.jsonl`, `.tsv`, `.csv` or `.parquet` with the columns `input` and `output`, or
            INDEX or INDEX@SELECTION whose samples have several captions, as LaCLIP takes COCO's.
        num_examples: E; at least so many must be there.

    Raises:
        FileNotFoundError: there is neither such a file nor such an index.
        ValueError: a row cannot be read, lacks a text, or there are too few examples.
    """
    is_file = Path(place).is_file()
    groups = _read_pairs(Path(place)) if is_file else _read_groups(place)
    if len(groups) < num_examples:
        what = "pairs" if is_file else "samples with two different captions"
        msg = f"{place} holds {len(groups)} {what}"
        raise ValueError(f"{msg}: add some, a prompt shows {num_examples} different ones")
    return ExampleSet(name=Path(place).name, groups=tuple(groups), has_direction=is_file)


def _read_pairs(path: Path) -> list[tuple[str, ...]]:
    reader = TableReader(files=(path,), text_columns=("input", "output"), key_column="")
    pairs = []
    for batch in reader.batches():
        for row, texts in enumerate(batch.texts):
            if len(texts) != 2 or not all(text.strip() for text in texts):
                raise ValueError(f"{path}, {batch.place_of(row)}: needs an input and an output")
            pairs.append(tuple(texts))
    return pairs


def _read_groups(place: str) -> list[tuple[str, ...]]:
    """Different captions of each sample that has two or more; evenly chosen if there are many."""
    dataset = open_dataset(place)
    table = dataset.index.captions()
    counts = dataset.of_samples(np.diff(table.first_text))
    several = np.flatnonzero(counts > 1)
    if len(several) > _MAX_GROUPS:
        several = several[np.linspace(0, len(several) - 1, _MAX_GROUPS).astype(np.int64)]
    ids = several if dataset.rows is None else dataset.rows[several].astype(np.int64)
    groups = (_texts(table.texts(table.rows(ids[k : k + 1])[0])) for k in range(len(ids)))
    return [group for group in groups if len(group) > 1]


def _texts(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))
