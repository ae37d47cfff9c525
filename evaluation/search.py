"""Finds the pictures nearest to a text or to another picture.

Legend: M pictures that could be decoded, d length of a feature.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from tessera.evaluation.encoder import Encoder, Progress, TextFeatures
from tessera.evaluation.image_sets import IMAGE_SUFFIXES, ImageFiles, ImageSet, IndexedImages
from tessera.model import Clip
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


class _UploadedImage:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One picture that was found."""

    place: int
    """Its place in the collection."""
    score: float | None
    """Cosine similarity to the query, -1 to 1; None without a query."""
    key: str
    """Its key, or its path in the folder."""
    caption: str
    """Its caption; may be empty."""


class Search:
    """A model and the features of a collection; may be asked from several threads."""

    def __init__(
        self, clip: Clip, pictures: Pictures, features: Tensor, places: NDArray[np.int64]
    ) -> None:
        """Put them together.

        Args:
            clip: made the features.
            pictures: what is searched.
            features: [M, d] unit length.
            places: [M] of the pictures in the collection.
        """
        self.pictures = pictures
        self.texts: TextFeatures | None = None
        """How queries become features; None takes the model's text tower."""
        self._clip = clip
        self._features = features
        self._places = places
        self._files = pictures.open()
        self._lock = Lock()

    @property
    def size(self) -> int:
        """Pictures that can be found."""
        return len(self._places)

    @property
    def num_bad(self) -> int:
        """Pictures of the collection that could not be decoded."""
        return len(self._files.ids) - self.size

    def by_text(self, text: str, count: int) -> list[Hit]:
        """The pictures nearest to a text, best first; what the model does not read is cut off."""
        with self._lock:
            (query,) = Encoder(clip=self._clip, texts=self.texts).prompts([text])
        return self._nearest(query, count)

    def by_file(self, data: bytes, count: int) -> list[Hit]:
        """The pictures nearest to an image file, best first.

        Raises:
            ValueError: it is no picture that can be decoded.
        """
        with self._lock:
            (query,) = Encoder(clip=self._clip).images("query", _UploadedImage(data)).features
        return self._nearest(query, count)

    def by_place(self, place: int, count: int) -> list[Hit]:
        """The pictures nearest to one of the collection, which is left out.

        Raises:
            ValueError: the collection has no such picture.
        """
        (rows,) = (self._places == place).nonzero()
        if not len(rows):
            raise ValueError(f"there is no picture {place} in {self.pictures.name}")
        hits = self._nearest(self._features[int(rows[0])], count + 1)
        return [hit for hit in hits if hit.place != place][:count]

    def some(self, count: int) -> list[Hit]:
        """Pictures at random, as the page opens with; without a score."""
        rows = np.random.default_rng().permutation(self.size)[:count]
        return [self._hit(int(row), None) for row in rows]

    def file(self, place: int) -> bytes:
        """The image file of a picture of the collection.

        Raises:
            OSError: it cannot be read.
        """
        (data,) = self._files.read(np.array([place]))
        if isinstance(data, OSError):
            raise data
        return data

    def _nearest(self, query: Tensor, count: int) -> list[Hit]:
        best = (self._features @ query).topk(min(count, self.size))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [self._hit(row, score) for row, score in found]

    def _hit(self, row: int, score: float | None) -> Hit:
        place = int(self._places[row])
        key, caption = self.pictures.words(place)
        return Hit(place=place, score=score, key=key, caption=caption)


def open_search(
    clip: Clip, pictures: Pictures, cache: Path, num_threads: int, progress: Progress
) -> tuple[Search, bool]:
    """Encode a collection, unless its features by this model are in the cache.

    Args:
        clip: the model; set to evaluation.
        pictures: what is searched.
        cache: folder of features, made when missing.
        num_threads: CPU threads that decode.
        progress: told how many pictures are done.

    Returns:
        The search, and whether the features came from the cache.

    Raises:
        ValueError: no picture could be decoded.
    """
    clip.eval()
    path = cache / f"{_fingerprint(clip, pictures)}.safetensors"
    if path.is_file():
        stored = load_file(path)
        return Search(clip, pictures, stored["features"], stored["places"].numpy()), True
    encoder = Encoder(clip=clip, num_threads=num_threads, progress=progress)
    encoded = encoder.images(pictures.name, pictures.open())
    _store(path, features=encoded.features, places=torch.from_numpy(encoded.places))
    return Search(clip, pictures, encoded.features, encoded.places), False


def _store(path: Path, **tensors: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)


def _fingerprint(clip: Clip, pictures: Pictures) -> str:
    """Of the weights, the architecture and the pictures."""
    digest = hashlib.sha256(f"{clip.config} {pictures.fingerprint}".encode())
    for name, weight in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
