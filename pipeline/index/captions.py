"""The captions of an index: texts and token ids, memory-mapped, packed without padding.

Shapes: M samples of the index, K texts (a sample may own several), B captions of a batch,
U tokens of a batch, start and end tokens included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.durable import write_text
from tessera.pipeline.index.arrow_file import column_view, list_parts, map_batch
from tessera.pipeline.index.text_reduction import ChooseTokens, truncated

SOT = 49406
"""Start-of-text token of the CLIP vocabulary."""
EOT = 49407
"""End-of-text token of the CLIP vocabulary."""
_RECORD_VERSION = 1
MAX_TOKENS = 253
"""Ids stored of a caption; with SOT and EOT a context of 255."""

CAPTION_SCHEMA = pa.schema(
    [
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("tokens", pa.large_list(pa.field("item", pa.uint16(), nullable=False)), False),
        pa.field("sample", pa.int64(), nullable=False),
    ]
)
"""One row per text; `sample` is the row of its owner, ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRecord:
    """Origin and extent of a caption source that was added to an index: the JSON beside its file.

    A source does not change the index's fingerprint. It names the state of the index that it was
    joined to, and has a fingerprint of its own, which a run's checkpoint records.
    """

    index_fingerprint: str
    """Of the index whose samples own the texts."""
    fingerprint: str
    """SHA-256 (hex) over the texts, their token ids and their owners."""
    tokenizer: str
    """Which tokenizer made the token ids."""
    inputs: tuple[dict[str, Any], ...]
    """Name, size in bytes and CRC-32 of the first and last 64 KiB of each file read."""
    join: str
    """How rows found their samples: key, url or row."""
    num_texts: int
    """Texts in the source."""
    num_samples: int
    """Samples with at least one text."""
    coverage: float
    """The same as a share of the index's samples, 0 to 1."""
    counts: dict[str, int]
    """What became of the rows and texts of the input; see `ImportReport`."""


def record_path(captions: Path) -> Path:
    """Where the record of `captions/<source>.arrow` lies."""
    return captions.with_suffix(".json")


def write_record(captions: Path, record: CaptionRecord) -> None:
    """Write the record of a caption file.

    Raises:
        OSError: it could not be written; an older one is as it was.
    """
    content = {"format_version": _RECORD_VERSION, **asdict(record)}
    write_text(record_path(captions), json.dumps(content, indent=1) + "\n")


def read_record(captions: Path) -> CaptionRecord | None:
    """The record of a caption file; None for one that was written with the index.

    Raises:
        ValueError: it is damaged or of another format version.
    """
    path = record_path(captions)
    if not path.is_file():
        return None
    hint = f"add the source again with `python tools/add_captions.py INDEX {captions.stem} ...`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version")
        if version == _RECORD_VERSION:
            return CaptionRecord(**{**content, "inputs": tuple(content["inputs"])})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {hint}") from error
    raise ValueError(f"{path} has format version {version}, not {_RECORD_VERSION}; {hint}")


class CaptionTable:
    """The texts of one caption source.

    Every column is a view of the mapped file, so opening costs no memory however many texts there
    are, and all ranks of a machine share the pages they touch.
    """

    token_offsets: NDArray[np.int64]
    """[K+1] text k owns `token_ids[token_offsets[k]:token_offsets[k+1]]`."""
    token_ids: NDArray[np.uint16]
    """BPE ids of all texts, one after the other, without start and end tokens."""
    sample: NDArray[np.int64]
    """[K] row of the index that each text belongs to, ascending."""

    def __init__(self, path: Path, num_samples: int) -> None:
        """Map the file.

        Args:
            path: `captions/<source>.arrow` of an index.
            num_samples: samples of that index.

        Raises:
            ValueError: the file is missing, damaged or belongs to another index.
        """
        self.path = path
        self.num_samples = num_samples
        self._batch = map_batch(path, CAPTION_SCHEMA)
        self.token_offsets, self.token_ids = list_parts(self._batch.column("tokens"))
        self.sample = column_view(self._batch, "sample")
        if len(self.sample) and not 0 <= self.sample[0] <= self.sample[-1] < num_samples:
            msg = f"texts for samples {self.sample[0]} to {self.sample[-1]}"
            raise ValueError(f"{path} holds {msg}, but the index has {num_samples} samples")

    def __reduce__(self) -> tuple[Any, ...]:
        """Map the file again in the process that unpickles this."""
        return CaptionTable, (self.path, self.num_samples)

    @property
    def num_texts(self) -> int:
        """K."""
        return len(self.sample)

    @property
    def text(self) -> pa.Array:
        """[K] all texts, mapped."""
        return self._batch.column("text")

    @cached_property
    def first_text(self) -> NDArray[np.int64]:
        """[M+1] sample i owns the texts `first_text[i]` to `first_text[i+1]`.

        The only array here that is computed and held (8 bytes a sample); `draw` and `rows` search
        the mapped column instead.
        """
        return np.searchsorted(self.sample, np.arange(self.num_samples + 1))

    def draw(self, ids: NDArray[np.int64], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Choose one text of each sample: number `floor(u * count)` of its texts.

        Args:
            ids: [B] rows of the index.
            uniforms: [B] float64 in [0, 1).

        Returns:
            [B] int64 rows of this table.

        Raises:
            ValueError: a sample has no text in this source.
        """
        first, count = self.span(ids)
        if not count.all():
            sample = np.asarray(ids)[count == 0][0]
            raise ValueError(f"sample {sample} has no text in {self.path}")
        return first + np.minimum((uniforms * count).astype(np.int64), count - 1)

    def span(self, ids: npt.ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[B] first text and [B] number of texts of each sample; without texts, 0."""
        first = np.searchsorted(self.sample, ids, side="left")
        return first, np.searchsorted(self.sample, ids, side="right") - first

    def rows(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All texts of each sample.

        Args:
            ids: [B] rows of the index.

        Returns:
            The text rows of all samples, one sample after the other, and their offsets [B+1].
        """
        first, count = self.span(ids)
        offsets = _offsets(count)
        return np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], count), offsets

    def texts(self, rows: NDArray[np.int64]) -> list[str]:
        """The texts at `rows` of this table, surrounding whitespace removed, otherwise as found."""
        return self._batch.column("text").take(pa.array(rows, pa.int64())).to_pylist()

    def pack(
        self, rows: NDArray[np.int64], context_length: int, choose: ChooseTokens = truncated
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids of the texts at `rows`, end to end, without padding.

        Args:
            rows: [B] rows of this table.
            context_length: most tokens of one caption, SOT and EOT included.
            choose: what is kept of a caption that is too long.

        Returns:
            tokens [U] int32 and text_offsets [B+1] int32.

        Raises:
            ValueError: `context_length` is below 2 or beyond what the index holds.
        """
        starts = self.token_offsets[rows]
        return pack_tokens(self.token_ids, starts, self.lengths(rows), context_length, choose)

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B] token ids of the texts at `rows`, SOT and EOT not counted."""
        return self.token_offsets[np.asarray(rows) + 1] - self.token_offsets[rows]


def pack_tokens(
    token_ids: NDArray[np.uint16],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    context_length: int,
    choose: ChooseTokens = truncated,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Put captions end to end, each as SOT, ids, EOT.

    Args:
        token_ids: ids of many captions, without SOT and EOT.
        starts: [B] where each caption starts in `token_ids`.
        lengths: [B] how many ids it has.
        context_length: most tokens of one caption, SOT and EOT included.
        choose: what is kept of a caption that is too long. By default it loses its tail and keeps
            its EOT, the rule of open_clip's tokenizer.

    A caption that holds a literal `<end_of_text>` ends there: open_clip reads a caption's feature
    at its first EOT, and what follows that cannot reach it in a causal tower.

    Returns:
        tokens [U] int32 and text_offsets [B+1] int32.

    Raises:
        ValueError: `context_length` is below 2 or above 255.
    """
    if not 2 <= context_length <= MAX_TOKENS + 2:
        msg = f"context_length must lie between 2 and {MAX_TOKENS + 2}, got {context_length}"
        raise ValueError(f"{msg}: the index keeps {MAX_TOKENS} ids of a caption")
    places, kept = choose(starts, lengths, context_length - 2)
    offsets = _offsets(kept + 2)
    tokens = np.empty(offsets[-1], dtype=np.int32)
    is_id = np.ones(len(tokens), dtype=bool)
    is_id[offsets[:-1]] = False
    is_id[offsets[1:] - 1] = False
    tokens[is_id] = token_ids[places]
    tokens[offsets[:-1]] = SOT
    tokens[offsets[1:] - 1] = EOT
    tokens, offsets = _until_first_end(tokens, offsets)
    return tokens, offsets.astype(np.int32)


def caption_batch(
    texts: Sequence[str] | pa.Array,
    token_arrays: Sequence[NDArray[np.uint16]],
    sample: npt.ArrayLike,
) -> pa.RecordBatch:
    """Rows of a caption file.

    Args:
        texts: K texts.
        token_arrays: K arrays of ids without SOT and EOT.
        sample: [K] owner of each text, ascending.
    """
    lengths = np.fromiter(map(len, token_arrays), np.int64, len(token_arrays))
    values = np.concatenate(token_arrays) if token_arrays else np.empty(0, np.uint16)
    columns = [
        pa.array(texts, pa.large_string()),
        pa.LargeListArray.from_arrays(
            _offsets(lengths), pa.array(values, pa.uint16()), CAPTION_SCHEMA.field("tokens").type
        ),
        pa.array(np.asarray(sample, dtype=np.int64)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=CAPTION_SCHEMA)


def _until_first_end(
    tokens: NDArray[np.int32], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Captions that end with an EOT, each cut behind its first one."""
    ends = np.flatnonzero(tokens == EOT)
    if len(ends) == len(offsets) - 1:
        return tokens, offsets
    first_ends = ends[np.searchsorted(ends, offsets[:-1])]
    kept = np.arange(len(tokens)) <= np.repeat(first_ends, np.diff(offsets))
    return tokens[kept], _offsets(first_ends + 1 - offsets[:-1])


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[B] counts to [B+1] offsets."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
