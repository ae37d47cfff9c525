"""Image-text retrieval: does a picture find its captions, does a caption find its picture?

Published tables do not agree on the names of the two directions. Here the first word is the query:

- image to text: the query is a picture, captions are ranked, and it counts if one of the picture's
  own captions is among the first k. CLIP_benchmark calls it `text_retrieval_recall`.
- text to image: the query is a caption, pictures are ranked, and it counts if its own picture is
  among the first k. CLIP_benchmark calls it `image_retrieval_recall`.

Ties, and similarities that are no numbers, count against the model, so features that have collapsed
score nothing.

Legend: M images, K texts, d length of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.evaluation.encoder import Encoder
from tessera.evaluation.image_sets import IndexedImages
from tessera.evaluation.scores import NUM_BAD, RECALL_OF, RETRIEVAL, Score
from tessera.pipeline.index import DEFAULT_SOURCE
from tessera.pipeline.index.dataset import open_dataset

RECALL_AT = (1, 5, 10)
_IMAGE_TILE = 2048
_TEXT_TILE = 4096
"""Similarities are computed in tiles of this size and never held: 32 MiB at a time."""
_LOOKED_AT = 200
"""Samples whose captions are looked at for doubts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalRun:
    """Scores of one data set and the features they come from."""

    scores: list[Score]
    """Recalls at 1, 5 and 10 in both directions, and num_bad."""
    image_features: Tensor
    """[M, d] unit length."""
    text_features: Tensor
    """[K, d] unit length."""
    sample_ids: NDArray[np.int64]
    """[M] rows of the index."""
    text_rows: NDArray[np.int64]
    """[K] rows of the index's caption table."""
    image_of_text: NDArray[np.int64]
    """[K] place of each text's image among the M."""
    ranks: Ranks
    """Where each query finds what it looks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """How many wrong answers stand before the (first) right one; 0 is a find at once."""

    of_images: Tensor
    """[M] long; the query is an image. Of one without a text, the largest number there is."""
    of_texts: Tensor
    """[K] long; the query is a text."""


def evaluate_retrieval(
    encoder: Encoder, place: str, source: str = DEFAULT_SOURCE
) -> RetrievalRun | None:
    """Encode all images and all their captions and measure recall both ways.

    Every process must ask; rank 0 gets the scores.

    Args:
        encoder: the model.
        place: `INDEX`, or `INDEX@SELECTION`.
        source: the caption source that is searched.

    Raises:
        FileNotFoundError: there is no such index.
        ValueError: it has no such caption source.
    """
    dataset = open_dataset(place)
    table = dataset.index.captions(source)
    images = encoder.images(place, IndexedImages(dataset, encoder.num_threads))
    # Ranks other than 0 do not know which images are good; they encode the captions of all.
    rows, offsets = table.rows(dataset.sample_ids(0, dataset.num_samples))
    texts = encoder.captions(table, rows)
    if not encoder.is_main:
        return None
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    kept = np.isin(owner, images.places)
    image_of_text = np.searchsorted(images.places, owner[kept])
    texts = texts if kept.all() else texts[torch.from_numpy(kept)]
    device = encoder.clip.logit_scale.device
    found = ranks(images.features.to(device), texts.to(device), image_of_text)
    return RetrievalRun(
        scores=summarise(found, image_of_text, place, images.num_bad),
        image_features=images.features,
        text_features=texts,
        sample_ids=images.sample_ids,
        text_rows=rows[kept],
        image_of_text=image_of_text,
        ranks=found,
    )


def doubts_of_captions(place: str) -> list[str]:
    """A sentence if most captions of a set have several lines, as several captions in a file do.

    Args:
        place: `INDEX`, or `INDEX@SELECTION`.

    Raises:
        FileNotFoundError: there is no such index.
    """
    dataset = open_dataset(place)
    if dataset.index.scan_options.captions != "txt":
        return []
    table = dataset.index.captions()
    texts = table.texts(table.rows(dataset.sample_ids(0, _LOOKED_AT))[0])
    lines = [sum(bool(line.strip()) for line in text.splitlines()) for text in texts]
    if 2 * sum(count > 1 for count in lines) <= len(lines):
        return []
    return [
        f"{place}: a text has {max(lines)} lines, and all of them are read as one caption; if each "
        "line is a caption, as in CLIP_benchmark's sets, give --captions lines here or to "
        "tools/index_shards.py"
    ]


def score_retrieval(
    images: Tensor, texts: Tensor, image_of_text: NDArray[np.int64], dataset: str
) -> list[Score]:
    """Recall at 1, 5 and 10 in both directions, and what guessing gives.

    Args:
        images: [M, d] unit length.
        texts: [K, d] unit length.
        image_of_text: [K] place of each text's image. An image without a text finds nothing.
        dataset: name for the result.
    """
    return summarise(ranks(images, texts, image_of_text), image_of_text, dataset)


def ranks(images: Tensor, texts: Tensor, image_of_text: NDArray[np.int64]) -> Ranks:
    """How many wrong answers stand before the right one, for every query in both directions.

    Two sweeps over tiles of the similarity matrix: the first computes only those with right pairs
    in them, the second counts what stands before these. Both compute a tile by the same call, so a
    right answer ties with itself and with its equals to the last bit.

    Args:
        images: [M, d].
        texts: [K, d], on the same device.
        image_of_text: [K] place of each text's image.
    """
    owner = torch.from_numpy(np.asarray(image_of_text)).to(images.device)
    own = torch.full((len(texts),), -torch.inf, device=images.device)
    for rows, columns, right in _tiles(len(images), owner):
        if right is not None:
            similarity = images[rows] @ texts[columns].T
            own[columns] = torch.where(
                right.any(dim=0), similarity.masked_fill(~right, 0).sum(dim=0), own[columns]
            )
    best = torch.full((len(images),), -torch.inf, device=images.device)
    best = best.scatter_reduce(0, owner, own, "amax")
    of_images = torch.zeros(len(images), dtype=torch.long, device=images.device)
    of_texts = torch.zeros(len(texts), dtype=torch.long, device=images.device)
    for rows, columns, right in _tiles(len(images), owner):
        similarity = images[rows] @ texts[columns].T
        of_texts[columns] += _num_before(similarity, own[columns], right, dim=0)
        of_images[rows] += _num_before(similarity, best[rows, None], right, dim=1)
    has_text = torch.bincount(owner, minlength=len(images)) > 0
    of_images.masked_fill_(~has_text, torch.iinfo(of_images.dtype).max)
    return Ranks(of_images=of_images.cpu(), of_texts=of_texts.cpu())


def summarise(
    found: Ranks, image_of_text: NDArray[np.int64], dataset: str, num_bad: int = 0
) -> list[Score]:
    """Recalls out of ranks, and what guessing gives.

    Args:
        found: from `ranks`.
        image_of_text: [K] place of each text's image.
        dataset: name for the result.
        num_bad: images that could not be decoded.
    """
    num_images, num_texts = len(found.of_images), len(found.of_texts)
    captions = np.bincount(image_of_text, minlength=num_images)
    ranks_of = {"image_to_text": found.of_images, "text_to_image": found.of_texts}
    chance_of = {
        "image_to_text": {k: _chance(num_texts, captions, k) for k in RECALL_AT},
        "text_to_image": {k: min(1.0, k / num_images) for k in RECALL_AT},
    }
    rows: list[tuple[str, float, float | None, int]] = [
        (
            f"{RECALL_OF[direction]}@{k}",
            _recall(ranks_of[direction], k),
            chance_of[direction][k],
            len(ranks_of[direction]),
        )
        for k in RECALL_AT
        for direction in ("text_to_image", "image_to_text")
    ]
    return [
        Score(dataset=dataset, task=RETRIEVAL, metric=metric, value=value, chance=chance, n=n)
        for metric, value, chance, n in [*rows, (NUM_BAD, num_bad, None, num_images)]
    ]


def _num_before(similarity: Tensor, own: Tensor, right: Tensor | None, dim: int) -> Tensor:
    """How many wrong pairs of a tile are not below their query's right one, along `dim`, long.

    What is no number is below nothing. Counted by products with ones: several times faster than
    sums of booleans, and exact, as a tile's sides are far below 2^24.
    """
    below = torch.lt(similarity, own, out=torch.empty_like(similarity))
    if right is not None:
        below.masked_fill_(right, 1)
    ones = torch.ones(below.shape[dim], device=below.device)
    return (len(ones) - (ones @ below if dim == 0 else below @ ones)).long()


def _tiles(num_images: int, owner: Tensor) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Rows, columns, and which pairs [rows, columns] belong together; None if none does."""
    for start in range(0, len(owner), _TEXT_TILE):
        columns = slice(start, start + _TEXT_TILE)
        owners = owner[columns]
        for first in range(0, num_images, _IMAGE_TILE):
            rows = slice(first, min(first + _IMAGE_TILE, num_images))
            inside = (owners >= rows.start) & (owners < rows.stop)
            right = None
            if bool(inside.any()):
                places = torch.arange(rows.start, rows.stop, device=owner.device)
                right = places[:, None] == owners
            yield rows, columns, right


def _recall(found: Tensor, k: int) -> float:
    return (found < k).double().mean().item()


def _chance(num_texts: int, captions: NDArray[np.int64], k: int) -> float:
    """Share of images with a right text among k drawn ones, mean over images."""
    drawn = np.arange(min(k, num_texts))
    missed = np.clip((num_texts - captions[:, None] - drawn) / (num_texts - drawn), 0, 1)
    return float(1 - missed.prod(axis=1).mean())
