"""Image-text retrieval: does a picture find its captions, does a caption find its picture?

"Image to text" has a picture as the query and captions as what is found; published tables do not
agree on these names. Ties count against the model, so features that have collapsed score nothing.

Legend: M images, K texts, d length of a feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.features import Progress, encode_images, encode_texts
from evaluation.report.data import RetrievalScores
from model import Clip
from pipeline import LoaderConfig
from pipeline.selection import open_dataset

RECALL_AT = (1, 5, 10)
_CHUNK = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalRun:
    """Scores of one data set and the features they come from."""

    scores: RetrievalScores
    """Recalls and what guessing gives."""
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


def evaluate_retrieval(
    clip: Clip, index_dir: str, config: LoaderConfig, progress: Progress | None = None
) -> RetrievalRun:
    """Encode all images and all their captions and measure recall both ways.

    Args:
        clip: the model.
        index_dir: `INDEX`, or `INDEX@SELECTION`.
        config: from `evaluation_config`.
        progress: told how many images and texts are done.
    """
    index = open_dataset(index_dir).index
    table = index.captions(config.caption_weights[0][0])
    images = encode_images(clip, index_dir, config, progress)
    rows, offsets = table.rows(images.sample_ids)
    packed = (
        table.pack(rows[start : start + config.batch_size], config.context_length)
        for start in range(0, len(rows), config.batch_size)
    )
    texts = encode_texts(clip, packed, progress)
    image_of_text = np.repeat(np.arange(len(images.sample_ids)), np.diff(offsets))
    return RetrievalRun(
        scores=score_retrieval(images.features, texts, image_of_text, index_dir),
        image_features=images.features,
        text_features=texts,
        sample_ids=images.sample_ids,
        text_rows=rows,
        image_of_text=image_of_text,
    )


def score_retrieval(
    images: Tensor, texts: Tensor, image_of_text: NDArray[np.int64], dataset: str
) -> RetrievalScores:
    """Recall at 1, 5 and 10 in both directions, and what guessing gives.

    Args:
        images: [M, d] unit length.
        texts: [K, d] unit length; every image has at least one.
        image_of_text: [K] place of each text's image.
        dataset: name for the result.
    """
    owner = torch.from_numpy(np.asarray(image_of_text))
    image_ranks = torch.cat([_ranks_of_images(images, texts, owner, c) for c in _chunks(images)])
    text_ranks = torch.cat([_ranks_of_texts(images, texts, owner, c) for c in _chunks(texts)])
    captions = np.bincount(image_of_text, minlength=len(images))
    return RetrievalScores(
        dataset=dataset,
        num_images=len(images),
        num_texts=len(texts),
        image_to_text=_recalls(image_ranks),
        text_to_image=_recalls(text_ranks),
        chance={
            "image_to_text": {k: _chance(len(texts), captions, k) for k in RECALL_AT},
            "text_to_image": {k: min(1.0, k / len(images)) for k in RECALL_AT},
        },
    )


def _ranks_of_images(images: Tensor, texts: Tensor, owner: Tensor, places: Tensor) -> Tensor:
    """How many wrong texts stand before the best right one, for some images."""
    similarity = images[places] @ texts.T
    right = owner[None, :] == places[:, None]
    best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarity >= best) & ~right).sum(dim=1)


def _ranks_of_texts(images: Tensor, texts: Tensor, owner: Tensor, places: Tensor) -> Tensor:
    """How many wrong images stand before the right one, for some texts."""
    similarity = texts[places] @ images.T
    own = similarity.gather(1, owner[places, None])
    return (similarity >= own).sum(dim=1) - 1


def _chunks(features: Tensor) -> tuple[Tensor, ...]:
    return torch.arange(len(features)).split(_CHUNK)


def _recalls(ranks: Tensor) -> dict[int, float]:
    return {k: (ranks < k).double().mean().item() for k in RECALL_AT}


def _chance(num_texts: int, captions: NDArray[np.int64], k: int) -> float:
    """Share of images with a right text among k drawn ones, mean over images."""
    drawn = np.arange(min(k, num_texts))
    missed = np.clip((num_texts - captions[:, None] - drawn) / (num_texts - drawn), 0, 1)
    return float(1 - missed.prod(axis=1).mean())
