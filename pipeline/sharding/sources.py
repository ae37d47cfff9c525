"""Tell what kind of source a person named, and read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.sharding.arrow_tables import (
    ArrowColumns,
    is_saved_dataset,
    read_parquet,
    read_saved_dataset,
)
from pipeline.sharding.folders import read_folder
from pipeline.sharding.samples import Source, group_rows
from pipeline.sharding.text_tables import read_delimited, read_json_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Where in a source the images, captions and labels are."""

    images: Path | None = None
    """Folder that the paths of a table are relative to; by default the folder of the table."""
    image_column: str | None = None
    """Column of image paths, or of image bytes; by default one with a usual name."""
    caption_column: str | None = None
    """Column of captions, strings or lists of them; by default one with a usual name."""
    label_column: str | None = None
    """Column of class names or numbers; by default there are no labels."""
    header: bool = True
    """Whether a CSV or TSV begins with the names of its columns; else columns are numbers."""
    split: str | None = None
    """Part of a Hugging Face data set that has parts."""
    labels_from_folders: bool = False
    """A folder of pictures: the sub-folder that a picture lies in is its class."""


def open_source(place: Path, options: SourceOptions) -> Source:
    """Read all of a source but its images.

    Args:
        place: a .csv, .tsv, .jsonl or .parquet file, a folder that `datasets` wrote with
            `save_to_disk`, or a folder of pictures.
        options: where in it things are.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is of no known kind, or holds nothing to take.
    """
    if not place.exists():
        raise FileNotFoundError(f"there is no {place}")
    if options.images is not None and not options.images.is_dir():
        raise FileNotFoundError(f"there is no folder {options.images}")
    if options.labels_from_folders and (not place.is_dir() or is_saved_dataset(place)):
        raise ValueError(f"--labels-from-folders needs a folder of pictures, and {place} is none")
    if place.is_dir() and not is_saved_dataset(place):
        source = read_folder(place.resolve(), labels_from_folders=options.labels_from_folders)
    else:
        source = _read_table(place, options)
    if not source.drafts and not source.skipped:
        raise ValueError(f"{place} is empty")
    return source


def _read_table(place: Path, options: SourceOptions) -> Source:
    images = (options.images or (place if place.is_dir() else place.parent)).resolve()
    columns = ArrowColumns(options.image_column, options.caption_column, options.label_column)
    kind = place.suffix.lower()
    if place.is_dir():
        return read_saved_dataset(place, options.split, columns, images)
    if kind in (".csv", ".tsv"):
        rows = read_delimited(place, columns, header=options.header)
    elif kind in (".jsonl", ".ndjson"):
        rows = read_json_lines(place, columns)
    elif kind == ".parquet":
        return read_parquet(place, columns, images)
    else:
        msg = f"{place} is neither a .csv, .tsv, .jsonl or .parquet file nor a folder"
        raise ValueError(f"{msg}; rename it if it is one of them")
    return group_rows(rows, images, labelled=options.label_column is not None)
