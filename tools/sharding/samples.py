"""What a source offers before anything is written, and why some of it cannot be used."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from tessera.pipeline.index.cells import is_null, texts_of, too_long
from tessera.pipeline.index.class_prompts import in_class_order
from tessera.pipeline.index.image_check import MAX_IMAGE_BYTES
from tessera.pipeline.index.rejection import Reason, RejectedSampleError

_USUAL_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


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
    image: Path | int
    """A file, or the row of the table that holds the bytes."""
    captions: list[str] = field(default_factory=list)
    label: str | int | None = None
    """Class name or number; None where the source has no labels."""
    file_name: str = ""
    """Of the image, as the source has it; empty where images have none."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Values of the further columns, by name."""


@dataclass(kw_only=True, slots=True)
class Source:
    """All that a source offers. Texts are held in memory, images are not."""

    drafts: list[Draft] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    has_lists: bool = False
    """Whether samples may have several captions."""
    class_names: list[str] | None = None
    """Names by class number; None where there are no labels or only numbers."""
    templates: list[str] | None = None
    """Zero-shot templates with `{c}` for the class name; None where the source brings none."""
    notes: list[str] = field(default_factory=list)
    """What was found out about the format of a table."""
    columns: list[str] = field(default_factory=list)
    """Further columns that drafts keep."""
    num_lists_in_text: int = 0
    """Cells of text that spelled a list of captions, and were taken as that list."""
    num_empty_captions: int = 0
    """Empty captions left out of samples that have others."""
    fetch: Callable[[int], tuple[bytes, str]] | None = None
    """Gives the image in a row of the table, and the name of its file. None where images are
    files."""
    any_order: bool = False
    """Whether `fetch` may be asked for rows in any order; else they come in their own."""

    def skip(self, where: str, error: SkippedError) -> None:
        """Note what gives no draft."""
        self.skipped.append(Skipped(where, error.reason, error.detail))


def usable_captions(value: Any) -> tuple[list[str], int]:
    """The captions of a table's cell that are not empty, and how many were.

    Raises:
        SkippedError: there is none, or one that no index would take.
    """
    try:
        found = texts_of(value)
    except ValueError as error:
        raise SkippedError(SkipReason.UNREADABLE_ROW, f"the caption {error}") from None
    texts = [text for text in found if text.strip()]
    if not texts:
        raise SkippedError(SkipReason.MISSING_CAPTION, "it is empty")
    for text in texts:
        if (detail := too_long(text)) is not None:
            raise SkippedError(SkipReason.CAPTION_TOO_LONG, detail)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise SkippedError(SkipReason.BAD_CAPTION_ENCODING, "it is not UTF-8") from None
    num_values = len(value) if isinstance(value, list | tuple) else len(found)
    return texts, num_values - len(texts)


def label_of(value: Any) -> str | int | None:
    """The class in a table's cell; None for nulls, empty text and the -1 of unlabelled rows."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if is_null(value) or (isinstance(value, int) and value < 0):
        return None
    return value if isinstance(value, int) else str(value).strip() or None


def number_labels(source: Source, *, digits_are_names: bool = False) -> list[str] | None:
    """Turn class names into numbers in the order of the names; numbers stay as they are.

    Numbers that are names (`digits_are_names`) are ordered as class folders are. Drafts without a
    usable label are skipped.

    Returns:
        The names, or None if all labels are numbers.
    """
    found = {str(draft.label) for draft in source.drafts if draft.label is not None}
    numeric = not digits_are_names and all(label.isdecimal() for label in found)
    names = in_class_order(found) if digits_are_names else sorted(found)
    numbers = {name: int(name) if numeric else number for number, name in enumerate(names)}
    kept: list[Draft] = []
    for draft in source.drafts:
        label = None if draft.label is None else numbers[str(draft.label)]
        if label is None or label >= 2**31:
            detail = "it has no label" if label is None else f"the label is {label}"
            source.skip(draft.where, SkippedError(SkipReason.MISSING_LABEL, detail))
        else:
            draft.label = label
            kept.append(draft)
    source.drafts = kept
    return None if numeric else [" ".join(name.split()) for name in names]


class ImageFolder:
    """The folder that images lie in; nothing outside of it is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def find(self, name: str) -> Path:
        """The file that a table names, if it lies in the folder after links are followed.

        Paths with backslashes, and names without their suffix, are found too.

        Raises:
            SkippedError: it lies elsewhere, or the name cannot be one.
        """
        if not name.strip():
            raise SkippedError(SkipReason.MISSING_FILE, "no image is named")
        if "://" in name:
            detail = f"{name} is a URL: download it first, see tools/download_cc12m.sh"
            raise SkippedError(SkipReason.OUTSIDE_FOLDER, detail)
        try:
            path = self._existing(name)
        except (ValueError, OSError, RuntimeError) as error:
            detail = f"{name!r} is no path: {error}"
            raise SkippedError(SkipReason.UNREADABLE_ROW, detail) from None
        if not path.is_relative_to(self._folder):
            detail = (
                f"{name} leads to {path}, outside {self._folder}; name a folder that holds both "
                "with --images, such as --images /"
            )
            raise SkippedError(SkipReason.OUTSIDE_FOLDER, detail)
        return path

    def _existing(self, name: str) -> Path:
        """The first reading of a name that leads to something; the plain one where none does."""
        names = [name, *([name.replace("\\", "/")] if "\\" in name else [])]
        if not Path(name).suffix:
            names += [name + suffix for suffix in _USUAL_SUFFIXES]
        readings = [(self._folder / each).resolve() for each in names]
        # Unlike `Path.exists`, it takes a name that is too long, or that may not be seen, for none.
        return next((p for p in readings if os.path.exists(p)), readings[0])  # noqa: PTH110


def read_image_file(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        SkippedError: there is none, or it is no regular file.
        RejectedSampleError: it is too large.
    """
    try:
        # A pipe or a device among the pictures must not be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SkippedError(SkipReason.UNREADABLE_FILE, f"{path} is no regular file")
            if status.st_size > MAX_IMAGE_BYTES:
                detail = f"{status.st_size} bytes exceed the limit of {MAX_IMAGE_BYTES}"
                raise RejectedSampleError(Reason.TOO_LARGE, detail)
            return file.read()
    except FileNotFoundError:
        raise SkippedError(SkipReason.MISSING_FILE, f"there is no {path}") from None
    except OSError as error:
        raise SkippedError(SkipReason.UNREADABLE_FILE, str(error)) from None
