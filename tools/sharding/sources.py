"""What a person may name as a source: a table, a Hugging Face data set, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from tessera.pipeline.index.arrow_tables import (
    ArrowTable,
    SavedDataset,
    is_saved_dataset,
    parquet_files,
)
from tessera.pipeline.index.cells import is_null
from tessera.pipeline.index.foreign_tables import (
    BadRow,
    Problem,
    Row,
    Table,
    find_column,
    required_column,
)
from tessera.pipeline.index.open_table import TableOptions, open_table
from tessera.tools.sharding.folders import holds_pictures, read_folder
from tessera.tools.sharding.samples import (
    Draft,
    ImageFolder,
    SkippedError,
    SkipReason,
    Source,
    label_of,
    number_labels,
    read_image_file,
    usable_captions,
)

_PROBLEMS = {
    Problem.UNREADABLE: SkipReason.UNREADABLE_ROW,
    Problem.ENCODING: SkipReason.BAD_CAPTION_ENCODING,
    Problem.TOO_LONG: SkipReason.CAPTION_TOO_LONG,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions(TableOptions):
    """Where in a source things are."""

    images: Path | None = None
    """Folder that the paths of a table are relative to; by default the folder of the table."""
    image_column: str | None = None
    """Column of image paths, or of image bytes; by default one with a usual name."""
    caption_column: str | None = None
    """Column of captions, strings or lists of them; by default one with a usual name."""
    label_column: str | None = None
    """Column of class names or numbers; by default there are no labels."""
    columns: tuple[str, ...] | None = None
    """Further columns of a table to keep beside each sample; by default all of them. The flag with
    no name after it keeps none."""
    labels_from_folders: bool = False
    """A folder of pictures: the sub-folder that a picture lies in is its class."""


def open_source(place: Path, options: SourceOptions) -> Source:
    """Read all of a source but its images.

    Args:
        place: a table (see `open_table`), a folder of parquet files, a folder that `datasets`
            wrote with `save_to_disk`, or a folder of pictures.
        options: where in it things are.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is of no known kind, or holds nothing to take.
    """
    if not place.exists():
        raise FileNotFoundError(f"there is no {place}")
    if options.images is not None and not options.images.is_dir():
        raise FileNotFoundError(f"there is no folder {options.images}")
    table = _table_of(place, options)
    if options.labels_from_folders and (not place.is_dir() or table == place):
        raise ValueError(f"--labels-from-folders needs a folder of pictures, and {place} is none")
    if table is None or options.labels_from_folders:
        source = read_folder(place.resolve(), labels_from_folders=options.labels_from_folders)
    else:
        source = _read_table(table, options)
    if not source.drafts and not source.skipped:
        raise ValueError(f"{place} is empty")
    return source


def _table_of(place: Path, options: SourceOptions) -> Path | None:
    """The table that a source is, or that lies among its pictures; None for pictures alone."""
    if not place.is_dir() or is_saved_dataset(place):
        return place
    if not holds_pictures(place) and parquet_files(place, options.split):
        return place
    tables = (place / f"metadata.{kind}" for kind in ("csv", "jsonl", "parquet"))
    return next(filter(Path.is_file, tables), None)  # as Hugging Face's image folders have it


def _read_table(place: Path, options: SourceOptions) -> Source:
    as_table = {each.name: getattr(options, each.name) for each in fields(TableOptions)}
    table = open_table((place,), TableOptions(**as_table))
    folder = ImageFolder(options.images or (place if place.is_dir() else place.parent))
    meaning = _columns(table, options)
    source = Source(notes=table.notes, columns=meaning.kept)
    rows = _checked(table.rows(meaning.all), source)
    if isinstance(table, ArrowTable) and not meaning.reads_image:
        _embedded(rows, source, table, meaning, folder)
    else:
        _grouped(rows, source, meaning, folder)
    if meaning.label is not None:
        source.class_names = number_labels(source)
        if isinstance(table, ArrowTable):
            source.class_names = table.class_names(meaning.label) or source.class_names
    return source


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Columns by their meaning."""

    image: str
    reads_image: bool
    """Whether the image column is among those that are read row by row."""
    caption: str | None
    label: str | None
    kept: list[str]

    @property
    def all(self) -> list[str]:
        """In the order in which `cells` takes them apart."""
        named = [self.image if self.reads_image else None, self.caption, self.label]
        return [name for name in named if name is not None] + self.kept

    def cells(self, values: Sequence[object]) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image, caption, label and the further values of a row."""
        rest = list(values)
        image = rest.pop(0) if self.reads_image else None
        caption = rest.pop(0) if self.caption is not None else None
        label = rest.pop(0) if self.label is not None else None
        return image, caption, label, dict(zip(self.kept, rest, strict=True))


def _columns(table: Table, options: SourceOptions) -> _Columns:
    names, label = table.names, options.label_column
    if not names:  # no header
        return _Columns(
            image=options.image_column or "1",
            reads_image=True,
            caption=options.caption_column or (None if label else "2"),
            label=label,
            kept=list(options.columns or ()),
        )
    try:
        # The keys of a JSON map are the images.
        usual = "key" if names == ["key", "caption"] else None
        image = required_column(names, options.image_column or usual, "image")
        others = names if options.caption_column else [name for name in names if name != image]
        find = find_column if label else required_column
        caption = find(others, options.caption_column, "caption")
    except ValueError as error:
        hint = ", or say --no-header if the first row is data" if hasattr(table, "header") else ""
        raise ValueError(f"{error}{hint}") from None
    label = find_column(names, label, "label") if label else None
    in_table = isinstance(table, ArrowTable) and table.holds_bytes(image)
    kept = _kept(table, options.columns)
    return _Columns(
        image=image,
        reads_image=not in_table,
        caption=caption,
        label=label,
        kept=[name for name in kept if name not in (image, caption, label)],
    )


def _kept(table: Table, wanted: tuple[str, ...] | None) -> list[str]:
    """Further columns: those wanted, or all that hold text or numbers and come once."""
    if wanted is None:
        once = [name for name in table.names if name.strip() and table.names.count(name) == 1]
        if isinstance(table, ArrowTable):
            once = [name for name in once if not _is_bulk(table.schema.field(name).type)]
        return once
    missing = [name for name in wanted if name not in table.names]
    if missing:
        listed = ", ".join(map(repr, table.names))
        raise ValueError(f"there is no column {missing[0]!r}; the table has {listed}")
    return list(wanted)


def _is_bulk(kind: pa.DataType) -> bool:
    """Whether a column may hold files or tables of its own."""
    types = pa.types
    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_nested)
    return any(test(kind) for test in tests)


def _checked(rows: Iterator[Row | BadRow], source: Source) -> Iterator[Row]:
    """The rows that can be read; the others are skipped with their reason."""
    for row in rows:
        if isinstance(row, Row):
            yield row
        else:
            source.skip(row.where, SkippedError(_PROBLEMS[row.problem], row.detail))


def _embedded(
    rows: Iterator[Row], source: Source, table: ArrowTable, meaning: _Columns, folder: ImageFolder
) -> None:
    """One draft a row; its image is fetched later, in the order of the rows."""
    for row in rows:
        _, caption, label, kept = meaning.cells(row.values)
        draft = Draft(
            number=row.number, where=row.where, image=row.number, kept=kept, label=label_of(label)
        )
        try:
            _add_captions(draft, caption, source, labelled=meaning.label is not None)
        except SkippedError as error:
            source.skip(row.where, error)
        else:
            source.drafts.append(draft)
    if isinstance(table, SavedDataset):
        source.fetch = lambda row: _image_of(table.cell(row, meaning.image), folder)
        source.any_order = True
    else:
        source.fetch = _in_order(table.cells(meaning.image), folder)


def _in_order(cells: Iterator[object], folder: ImageFolder) -> Callable[[int], tuple[bytes, str]]:
    """A function that gives the image of a row; rows must be asked for in their order."""
    numbered = enumerate(cells)
    return lambda row: _image_of(
        next((cell for number, cell in numbered if number == row), None), folder
    )


def _grouped(rows: Iterator[Row], source: Source, meaning: _Columns, folder: ImageFolder) -> None:
    """One draft of all rows that name the same image file."""
    by_path: dict[Path, Draft] = {}
    for row in rows:
        image, caption, label, kept = meaning.cells(row.values)
        try:
            path = folder.find("" if is_null(image) else str(image))
            draft = by_path.get(path) or Draft(
                number=row.number, where=row.where, image=path, file_name=str(image), kept=kept
            )
            _add_captions(draft, caption, source, labelled=meaning.label is not None)
        except SkippedError as error:
            source.skip(row.where, error)
            continue
        if path in by_path:
            source.has_lists = True
        else:
            draft.label = label_of(label)
            by_path[path] = draft
    source.drafts = list(by_path.values())


def _add_captions(draft: Draft, value: object, source: Source, *, labelled: bool) -> None:
    """The captions of a row; where there are labels, a template can stand in for them."""
    if labelled and (is_null(value) or (isinstance(value, str) and not value.strip())):
        return
    captions, num_empty = usable_captions(value)
    source.has_lists |= not isinstance(value, str) or captions != [value]
    source.num_lists_in_text += isinstance(value, str) and captions != [value]
    source.num_empty_captions += num_empty
    draft.captions += captions


def _image_of(cell: Any, folder: ImageFolder) -> tuple[bytes, str]:
    """The bytes in a cell, or in the file that it names instead, and the name of the file."""
    data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    name = name if isinstance(name, str) else ""
    if isinstance(data, bytes):
        return data, name
    if not name:
        raise SkippedError(SkipReason.MISSING_FILE, "the cell of the image is empty")
    return read_image_file(folder.find(name)), name
