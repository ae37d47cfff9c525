"""The columns of an index's samples, read for some samples at a time.

Legend: R samples that are asked for, K texts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from posixpath import basename

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tessera.pipeline.index import Index

Column = Callable[[NDArray[np.int64]], pa.Array]
"""From [R] rows of the index to [R] values, null where there is none."""


def sample_columns(index: Index, caption_source: str) -> dict[str, Column]:
    """What reads each column of some samples, by the name of the column."""
    names = pa.array([basename(record.location) for record in index.shards], pa.large_string())
    columns: dict[str, Column] = {
        "key": lambda ids: index.table.column("key").take(pa.array(ids)),
        "shard": lambda ids: names.take(pa.array(index.shard[ids])),
        "label": lambda ids: pa.array(index.label[ids], mask=index.label[ids] < 0),
        "size": lambda ids: pa.array(index.size[ids]),
        "width": lambda ids: pa.array(index.width[ids]),
        "height": lambda ids: pa.array(index.height[ids]),
        **_text_columns(index, caption_source),
    }
    if any(index.source_names):
        sources = pa.array(index.source_names, pa.large_string())
        columns["source"] = lambda ids: sources.take(pa.array(index.sources_of(ids)))
        columns["source_key"] = lambda ids: pa.array(index.keys(ids), pa.large_string())
    for name in index.column_names:
        columns[name] = partial(_taken, index.column(name))
    return columns


def _taken(array: pa.Array, ids: NDArray[np.int64]) -> pa.Array:
    return array.take(pa.array(ids))


def _text_columns(index: Index, caption_source: str) -> dict[str, Column]:
    """Columns about the texts of each sample; null where it has none."""
    table = index.captions(caption_source)

    def first_text(ids: NDArray[np.int64]) -> pa.Array:
        rows, offsets = table.rows(ids)
        there = np.diff(offsets) > 0
        places = np.zeros(len(ids), dtype=np.int64)
        places[there] = rows[offsets[:-1][there]]
        return table.text.take(pa.array(places, mask=~there))

    def over_texts(measure: Callable[[NDArray[np.int64]], NDArray], combine: np.ufunc) -> Column:
        def read(ids: NDArray[np.int64]) -> pa.Array:
            rows, offsets = table.rows(ids)
            there = np.diff(offsets) > 0
            result = np.zeros(len(ids), dtype=np.int64)
            if there.any():
                result[there] = combine.reduceat(measure(rows), offsets[:-1][there])
            return pa.array(result, mask=~there)

        return read

    def characters(rows: NDArray[np.int64]) -> NDArray:
        lengths = pc.call_function("utf8_length", [table.text.take(pa.array(rows))])
        return lengths.to_numpy(zero_copy_only=False)

    def tokens(rows: NDArray[np.int64]) -> NDArray:
        return table.token_offsets[rows + 1] - table.token_offsets[rows]

    return {
        "num_captions": lambda ids: pa.array(np.diff(table.rows(ids)[1])),
        "text": first_text,
        "min_caption_length": over_texts(characters, np.minimum),
        "max_caption_length": over_texts(characters, np.maximum),
        "min_num_tokens": over_texts(tokens, np.minimum),
        "max_num_tokens": over_texts(tokens, np.maximum),
    }
