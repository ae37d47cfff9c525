"""A folder of pictures: captions in text files beside them, or classes by sub-folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tessera.pipeline.index.class_prompts import in_class_order, prompts_of_folders
from tessera.pipeline.index.sample_texts import MAX_TEXT_BYTES
from tessera.tools.sharding.samples import (
    Draft,
    ImageFolder,
    SkippedError,
    SkipReason,
    Source,
    number_labels,
    usable_captions,
)

_IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".jp2", ".svg"),
)
_TEXT_SUFFIXES = (".txt", ".caption")


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture below a folder."""
    return any(path.suffix.lower() in _IMAGE_SUFFIXES for path in _files(folder))


def read_folder(folder: Path, *, labels_from_folders: bool) -> Source:
    """Find the pictures below a folder, in the order of their paths.

    Args:
        folder: resolved. Hidden files and folders are passed over.
        labels_from_folders: the first sub-folder on the way to a picture is its class.

    Raises:
        ValueError: there are no pictures, or no captions and no labels asked for.
    """
    images, beside, lone_texts = _pictures_and_texts(folder)
    if not images:
        raise ValueError(f"{folder} holds no pictures")
    if not beside and not labels_from_folders:
        msg = f"no picture in {folder} has a .txt of the same name"
        raise ValueError(f"{msg}; name a table of captions, or say --labels-from-folders")
    source, inside = Source(), ImageFolder(folder)
    for number, path in enumerate(images):
        name = path.relative_to(folder)
        where = _printable(name)
        draft = Draft(number=number, where=where, image=path, file_name=where)
        text = beside.get(path.with_suffix(""))
        try:
            inside.find(str(name))
            if text is not None or not labels_from_folders:
                draft.captions = [_read_text(text, inside)]
        except SkippedError as error:
            source.skip(where, error)
            continue
        if labels_from_folders and len(name.parts) > 1:
            draft.label = _printable(Path(name.parts[0]))
        source.drafts.append(draft)
    if labels_from_folders:
        _name_classes(source, folder)
        return source
    lone = SkippedError(SkipReason.MISSING_FILE, "a caption without a picture of the same name")
    for path in lone_texts:
        source.skip(_printable(path.relative_to(folder)), lone)
    return source


def _name_classes(source: Source, folder: Path) -> None:
    """Number the class folders, and name them as an evaluation of the same folders does."""
    folders = in_class_order({str(draft.label) for draft in source.drafts if draft.label})
    # Folder names made of digits are names too: "7" may well be the third class.
    number_labels(source, digits_are_names=True)
    if folders:
        prompts = prompts_of_folders(str(folder), folders)
        source.class_names, source.templates = prompts.class_names, prompts.templates


def _pictures_and_texts(folder: Path) -> tuple[list[Path], dict[Path, Path], list[Path]]:
    """Pictures, the text file by the path without suffix of its picture, and all other texts."""
    files = list(_files(folder))
    images = [path for path in files if path.suffix.lower() in _IMAGE_SUFFIXES]
    # A text is named like its picture without the suffix (a.txt), or with it (a.jpg.txt).
    stems = {path.with_suffix(""): path.with_suffix("") for path in images}
    stems |= {path: path.with_suffix("") for path in images}
    beside: dict[Path, Path] = {}
    lone: list[Path] = []
    for path in files:
        if path.suffix.lower() in _TEXT_SUFFIXES:
            stem = stems.get(path.with_suffix(""))
            if stem is None or beside.setdefault(stem, path) != path:
                lone.append(path)
    return images, beside, lone


def _files(folder: Path) -> Iterator[Path]:
    """All files below, in the order of their paths, without hidden ones."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place, name)


def _read_text(path: Path | None, inside: ImageFolder) -> str:
    """The caption in a text file, whole and as it is.

    Raises:
        SkippedError: there is none, or it cannot be used.
    """
    if path is None:
        raise SkippedError(SkipReason.MISSING_CAPTION, "no .txt of the same name")
    inside.find(str(path))
    if not path.is_file():
        raise SkippedError(SkipReason.UNREADABLE_FILE, f"{path.name} is no regular file")
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"{path.name} is not UTF-8: {error.reason} at byte {error.start}"
        raise SkippedError(SkipReason.BAD_CAPTION_ENCODING, detail) from None
    except OSError as error:
        raise SkippedError(SkipReason.UNREADABLE_FILE, str(error)) from None
    return usable_captions(text)[0][0]


def _printable(path: Path) -> str:
    """The path as text that can be printed and stored, whatever bytes the file system has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
