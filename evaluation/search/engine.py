"""Finds the pictures nearest to a text or to another picture.

Legend: M pictures that could be decoded, d length of a feature.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from tessera.evaluation.encoder import Encoder, Progress, TextFeatures
from tessera.evaluation.search.pictures import Pictures, UploadedImage
from tessera.model import Clip


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One picture that was found."""

    place: int
    """Its place in the collection."""
    score: float
    """Cosine similarity to the query, -1 to 1."""
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
            (query,) = Encoder(clip=self._clip).images("query", UploadedImage(data)).features
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
        hits = []
        for row, score in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            place = int(self._places[row])
            key, caption = self.pictures.words(place)
            hits.append(Hit(place=place, score=score, key=key, caption=caption))
        return hits


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
