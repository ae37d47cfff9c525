"""Where searched pictures come from: an index, or a folder of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tessera.evaluation.image_sets import IMAGE_SUFFIXES, ImageFiles, ImageSet, IndexedImages
from tessera.pipeline.index.dataset import open_dataset

_THREADS = 4
"""Reads in flight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """A collection to search in."""

    name: str
    """How a person named it."""
    fingerprint: str
    """Changes when a picture does."""
    open: Callable[[], ImageSet]
    """Opens the pictures; whoever does closes them."""
    words: Callable[[int], tuple[str, str]]
    """Key and caption of the picture at a place; the caption may be empty."""


def open_pictures(place: str) -> Pictures:
    """Open an index, a selection of one, or a folder of pictures with those in its folders.

    Args:
        place: `INDEX`, `INDEX@SELECTION` or a folder.

    Raises:
        FileNotFoundError: there is nothing of that name, or a shard has gone.
        ValueError: it holds no pictures, or its index is damaged.
    """
    folder = Path(place)
    if folder.is_dir() and not (folder / "index.json").is_file():
        return _of_folder(folder)
    return _of_index(place)


def _of_index(reference: str) -> Pictures:
    dataset = open_dataset(reference)
    index = dataset.index
    index.check_shards()
    captions = index.captions()

    def words(place: int) -> tuple[str, str]:
        ids = dataset.sample_ids(place, place + 1)
        rows, _ = captions.rows(ids)
        texts = captions.texts(rows[:1])
        return index.keys(ids)[0], texts[0] if texts else ""

    return Pictures(
        name=reference,
        fingerprint=f"{index.fingerprint} {dataset.selection_fingerprint}",
        open=lambda: IndexedImages(dataset, _THREADS),
        words=words,
    )


def _of_folder(folder: Path) -> Pictures:
    """Pictures in files; the caption of one is that of a .txt file beside it."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not paths:
        raise ValueError(
            f"{folder} holds neither an index nor pictures ({', '.join(IMAGE_SUFFIXES)})"
        )
    digest = hashlib.sha256()
    for path in paths:
        state = path.stat()
        digest.update(os.fsencode(path) + f"\0{state.st_size}\0{state.st_mtime_ns}\n".encode())

    def words(place: int) -> tuple[str, str]:
        path = paths[place]
        text = path.with_suffix(".txt")
        caption = text.read_text("utf-8", "replace").strip() if text.is_file() else ""
        return os.fsencode(path.relative_to(folder)).decode("utf-8", "replace"), caption

    return Pictures(
        name=str(folder),
        fingerprint=digest.hexdigest(),
        open=lambda: ImageFiles(paths),
        words=words,
    )


class UploadedImage:
    """A picture in memory, as a set of one."""

    ids = np.zeros(1, dtype=np.int64)
    """Nothing is drawn for it."""

    def __init__(self, data: bytes) -> None:
        """Take the file's content."""
        self._data = data

    def read(self, places: np.ndarray) -> list[bytes | OSError]:
        """The file, as often as it is asked for."""
        return [self._data] * len(places)

    def name(self, place: int) -> str:
        """It has no name."""
        return f"picture {place}"

    def close(self) -> None:
        """Nothing is open."""
