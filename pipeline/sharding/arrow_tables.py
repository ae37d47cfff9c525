"""Tables that Arrow reads: parquet files, and Hugging Face data sets that were saved to a folder.

The `datasets` library is not needed: what its `save_to_disk` writes are Arrow streams with a few
lines of JSON beside them. Images may be paths, or their bytes may lie in the table.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sharding.image_bytes import read_image_file
from pipeline.sharding.samples import (
    Draft,
    DraftRows,
    Skipped,
    SkippedError,
    SkipReason,
    Source,
    group_rows,
    inside_folder,
    is_null,
    label_of,
    number_labels,
    usable_captions,
)
from pipeline.sharding.text_tables import find_column, required_column

_ROWS_AT_ONCE = 1024


class ArrowColumns(NamedTuple):
    """Columns to use; None to go by usual names, and for no label."""

    image: str | None
    """Path, bytes, or a structure of `bytes` and `path`."""
    caption: str | None
    """String or list of strings."""
    label: str | None
    """Class name or number."""


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets`' `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_parquet(path: Path, columns: ArrowColumns, images: Path) -> Source:
    """Read a parquet file.

    Args:
        path: the file.
        columns: which columns to use.
        images: resolved folder that paths are relative to.

    Raises:
        ValueError: it is no parquet file, or a column is missing.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no parquet file ({error})") from None
    schema = file.schema_arrow
    ends = list(accumulate(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)))

    @lru_cache(maxsize=1)
    def group_images(number: int, column: str) -> pa.ChunkedArray:
        return file.read_row_group(number, columns=[column]).column(0)

    def fetch(row: int, column: str) -> Any:
        number = bisect.bisect_right(ends, row)
        start = ends[number - 1] if number else 0
        return group_images(number, column)[row - start].as_py()

    def batches(names: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from file.iter_batches(_ROWS_AT_ONCE, columns=names)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error})") from None

    source = _read(schema, batches, fetch, columns, images)
    source.any_order = source.fetch is None
    return source


def read_saved_dataset(
    folder: Path, split: str | None, columns: ArrowColumns, images: Path
) -> Source:
    """Read a Hugging Face data set on disk.

    Args:
        folder: what `save_to_disk` wrote.
        split: which part of it, if it has parts.
        columns: which columns to use.
        images: resolved folder that paths are relative to.

    Raises:
        ValueError: a split or a column is missing, or the files are damaged.
    """
    try:
        files = _data_files(folder, split)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the JSON files of {folder} are damaged: {error!r}") from None
    try:
        streams = [pa.ipc.open_stream(pa.memory_map(str(file))) for file in files]
        table = pa.concat_tables([stream.read_all() for stream in streams])
        # Offsets that lead outside of the file would be followed; of images, only they are read.
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"the Arrow files of {folder} are damaged ({error})") from None

    def fetch(row: int, column: str) -> Any:
        return table.column(column)[row].as_py()

    def batches(names: list[str]) -> Iterator[pa.RecordBatch]:
        return iter(table.select(names).to_batches(_ROWS_AT_ONCE))

    return _read(table.schema, batches, fetch, columns, images)


def _data_files(folder: Path, split: str | None) -> list[Path]:
    """The Arrow files of a saved data set, in their order."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        if split not in splits:
            msg = f"the data set has the splits {', '.join(splits)}"
            raise ValueError(f"{msg}; choose one with --split")
        folder /= str(split)
    state = json.loads((folder / "state.json").read_text("utf-8"))
    if state.get("_indices_files"):
        raise ValueError(f"{folder} is a view of another data set: call flatten_indices() first")
    return [folder / entry["filename"] for entry in state["_data_files"]]


def _read(
    schema: pa.Schema,
    batches: Callable[[list[str]], Iterator[pa.RecordBatch]],
    fetch: Callable[[int, str], Any],
    columns: ArrowColumns,
    images: Path,
) -> Source:
    image = schema.names[required_column(schema.names, columns.image, "image")]
    place = find_column(schema.names, columns.caption, "caption")
    label = None if columns.label is None else columns.label
    if label is not None:
        find_column(schema.names, label, "label")
    if place is None and label is None:
        required_column(schema.names, columns.caption, "caption")
    caption = None if place is None else schema.names[place]
    kind = schema.field(image).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        source = group_rows(
            _cells(batches, image, caption, label), images, labelled=label is not None
        )
    else:
        _check_image_type(kind, image)
        source = _embedded(_cells(batches, None, caption, label), labelled=label is not None)
        source.fetch = lambda row: _image_of(fetch(row, image), images)
    names = _class_label_names(schema, label)
    if names is not None:
        source.class_names = names
    return source


def _check_image_type(kind: pa.DataType, column: str) -> None:
    names = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if "bytes" in names or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return
    msg = f"the column {column!r} holds {kind}, neither paths nor the bytes of image files"
    raise ValueError(f"{msg}; name another one with --image-column")


def _cells(
    batches: Callable[[list[str]], Iterator[pa.RecordBatch]],
    image: str | None,
    caption: str | None,
    label: str | None,
) -> Iterator[DraftRows]:
    """Rows without the bytes of images, which would not fit into memory."""
    wanted = (image, caption, label)
    names = list(dict.fromkeys(name for name in wanted if name is not None))
    number = 0
    for batch in batches(names):
        columns = [None if n is None else batch.column(n).to_pylist() for n in wanted]
        for row in range(len(batch)):
            values = (None if column is None else column[row] for column in columns)
            yield DraftRows(f"row {number}", *values)
            number += 1


def _embedded(rows: Iterator[DraftRows], *, labelled: bool) -> Source:
    """One draft a row; its image is fetched by the number of the row."""
    source = Source(drafts=[], skipped=[], has_lists=False, class_names=None)
    for number, row in enumerate(rows):
        draft = Draft(number=number, where=row.where, image=number, label=label_of(row.label))
        source.has_lists |= isinstance(row.caption, list)
        try:
            if not (labelled and (is_null(row.caption) or row.caption == "")):
                draft.captions, num_empty = usable_captions(row.caption)
                source.num_empty_captions += num_empty
        except SkippedError as error:
            source.skipped.append(Skipped(row.where, error.reason, error.detail))
            continue
        source.drafts.append(draft)
    if labelled:
        source.class_names = number_labels(source.drafts, source.skipped)
    return source


def _image_of(cell: Any, images: Path) -> bytes:
    """The bytes in a cell, or in the file that it names instead."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if data is not None:
        return data
    path = cell.get("path") if isinstance(cell, dict) else None
    if not path:
        raise SkippedError(SkipReason.MISSING_FILE, "the cell of the image is empty")
    return read_image_file(inside_folder(path, images))


def _class_label_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """Names that a Hugging Face data set has for the numbers of its label column."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if label is None or stored is None:
        return None
    feature = json.loads(stored).get("info", {}).get("features", {}).get(label, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return [" ".join(str(name).split()) for name in names] if names else None
