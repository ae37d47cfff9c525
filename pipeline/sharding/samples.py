"""What a source offers before anything is written, and why some of it cannot be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.class_prompts import in_class_order
from pipeline.indexing.scan_shard import MAX_CAPTION_CHARACTERS


class SkipReason(StrEnum):
    """Why a row gives no sample. What is wrong with an image file has the index's own words."""

    UNREADABLE_ROW = "unreadable_row"
    MISSING_FILE = "missing_file"
    OUTSIDE_FOLDER = "outside_folder"
    UNREADABLE_FILE = "unreadable_file"
    MISSING_CAPTION = "missing_caption"
    BAD_CAPTION_ENCODING = "bad_caption_encoding"
    CAPTION_TOO_LONG = "caption_too_long"
    MISSING_LABEL = "missing_label"
    CANNOT_CONVERT = "cannot_convert"


class Skipped(NamedTuple):
    """Something of the source that is in no shard."""

    where: str
    """The row or the file."""
    reason: str
    """A `SkipReason` or a `Reason` of the index."""
    detail: str
    """One sentence for a person."""


class SkippedError(Exception):
    """Carries reason and detail out of a check."""

    def __init__(self, reason: SkipReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(kw_only=True, slots=True)
class Draft:
    """A sample to be: its texts, and where its image is."""

    number: int
    """Place in the source, counted from 0; it becomes the key."""
    where: str
    """The row or the file, for messages."""
    image: Path | int
    """A file, or the row of the table that holds the bytes."""
    captions: list[str] = field(default_factory=list)
    """Usable captions as found."""
    label: str | int | None = None
    """Class name or number; None where the source has no labels."""


@dataclass(kw_only=True, slots=True)
class Source:
    """All that a source offers. Texts are held in memory, images are not."""

    drafts: list[Draft]
    """In the order of the source."""
    skipped: list[Skipped]
    """What gave no draft."""
    has_lists: bool
    """Whether samples may have several captions."""
    class_names: list[str] | None
    """Names by class number; None where there are no labels or only numbers."""
    templates: list[str] | None = None
    """Zero-shot templates with `{c}` for the class name; None where the source brings none."""
    num_empty_captions: int = 0
    """Empty captions left out of samples that have others."""
    fetch: Callable[[int], bytes] | None = None
    """Gives the image in a row of the table; None where images are files."""
    any_order: bool = True
    """Whether `fetch` is fast in any order of rows."""


def usable_captions(value: Any) -> tuple[list[str], int]:
    """The captions of a table's cell that are not empty, and how many were.

    Args:
        value: a string, a list of strings, or a null of whatever library.

    Raises:
        SkippedError: there is none, or one that no index would take.
    """
    values = value if isinstance(value, list | tuple) else [value]
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    if wrong := [v for v in values if not (isinstance(v, str) or is_null(v))]:
        detail = f"a caption is {type(wrong[0]).__name__}, not text"
        raise SkippedError(SkipReason.UNREADABLE_ROW, detail)
    if not texts:
        raise SkippedError(SkipReason.MISSING_CAPTION, "it is empty")
    for text in texts:
        check_text(text)
    return texts, len(values) - len(texts)


def check_text(text: str) -> None:
    """Refuse what no index would take.

    Raises:
        SkippedError: too long, or not storable as UTF-8.
    """
    if len(text) > MAX_CAPTION_CHARACTERS:
        detail = f"{len(text)} characters exceed the limit of {MAX_CAPTION_CHARACTERS}"
        raise SkippedError(SkipReason.CAPTION_TOO_LONG, detail)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SkippedError(SkipReason.BAD_CAPTION_ENCODING, "it is not UTF-8") from None


def is_null(value: Any) -> bool:
    """None, or the NaN that data frames have for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def label_of(value: Any) -> str | int | None:
    """The class in a table's cell; None for nulls, empty text and the -1 of unlabelled rows."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if is_null(value) or (isinstance(value, int) and value < 0):
        return None
    return value if isinstance(value, int) else str(value).strip() or None


def number_labels(
    drafts: list[Draft], skipped: list[Skipped], *, digits_are_names: bool = False
) -> list[str] | None:
    """Turn class names into numbers in the order of the names; numbers stay as they are.

    Numbers that are names (`digits_are_names`) are ordered as class folders are.

    Drafts without a usable label are taken out of `drafts` and added to `skipped`.

    Returns:
        The names, or None if all labels are numbers.
    """
    found = {draft.label for draft in drafts if draft.label is not None}
    numeric = not digits_are_names and all(str(label).isdecimal() for label in found)
    names = in_class_order(map(str, found)) if digits_are_names else sorted(map(str, found))
    numbers = {name: int(name) if numeric else number for number, name in enumerate(names)}
    kept: list[Draft] = []
    for draft in drafts:
        label = None if draft.label is None else numbers[str(draft.label)]
        if label is None or label >= 2**31:
            detail = "it has no label" if label is None else f"the label is {label}"
            skipped.append(Skipped(draft.where, SkipReason.MISSING_LABEL, detail))
            continue
        draft.label = label
        kept.append(draft)
    drafts[:] = kept
    return None if numeric else [" ".join(name.split()) for name in names]


def inside_folder(path: str, folder: Path) -> Path:
    """The file that a table names, if it lies in `folder` after links are followed.

    Args:
        path: as the table has it; absolute, or relative to `folder`.
        folder: resolved.

    Raises:
        SkippedError: it lies elsewhere, or the name cannot be one.
    """
    if not path.strip():
        raise SkippedError(SkipReason.MISSING_FILE, "no image is named")
    if "://" in path:
        raise SkippedError(SkipReason.OUTSIDE_FOLDER, f"{path} is a URL: download it first")
    try:
        resolved = (folder / path).resolve()
    except (ValueError, OSError, RuntimeError) as error:
        detail = f"{path!r} is no path: {error}"
        raise SkippedError(SkipReason.UNREADABLE_ROW, detail) from None
    if not resolved.is_relative_to(folder):
        detail = f"{path} leads to {resolved}, outside {folder}"
        raise SkippedError(SkipReason.OUTSIDE_FOLDER, detail)
    return resolved


class DraftRows(NamedTuple):
    """A row as a table has it."""

    where: str
    """For messages, such as `row 17`."""
    image: Any
    """Path."""
    caption: Any
    """String, list of strings or null."""
    label: Any
    """Class, or null."""


def group_rows(rows: Iterable[DraftRows | Skipped], folder: Path, *, labelled: bool) -> Source:
    """Make one draft of all rows that name the same image file.

    Args:
        rows: in the order of the table.
        folder: resolved; images lie in it.
        labelled: captions may be missing, and labels are there.
    """
    source = Source(drafts=[], skipped=[], has_lists=False, class_names=None)
    by_path: dict[Path, Draft] = {}
    for number, row in enumerate(rows):
        if isinstance(row, Skipped):
            source.skipped.append(row)
            continue
        try:
            path = inside_folder("" if is_null(row.image) else str(row.image), folder)
            captions, num_empty = _row_captions(row.caption, labelled=labelled)
        except SkippedError as error:
            source.skipped.append(Skipped(row.where, error.reason, error.detail))
            continue
        source.has_lists |= isinstance(row.caption, list) or path in by_path
        source.num_empty_captions += num_empty
        if path not in by_path:
            by_path[path] = Draft(
                number=number, where=row.where, image=path, label=label_of(row.label)
            )
        by_path[path].captions += captions
    source.drafts = list(by_path.values())
    if labelled:
        source.class_names = number_labels(source.drafts, source.skipped)
    return source


def _row_captions(value: Any, *, labelled: bool) -> tuple[list[str], int]:
    """As `usable_captions`; where there are labels, a template can stand in for a caption."""
    empty = is_null(value) or (isinstance(value, str) and not value.strip())
    return ([], 0) if labelled and empty else usable_captions(value)
