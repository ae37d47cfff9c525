"""LLM2CLIP's separability probe: do two captions of one image find each other?

Source: arXiv 2411.04997, caption retrieval accuracy; first two captions of each image, without an
instruction. Ties count against the encoder, so one that gives every text the same vector scores 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tessera.evaluation.retrieval import score_retrieval
from tessera.evaluation.scores import RETRIEVAL, of_task
from tessera.model.text_encoders import TextEncoder
from tessera.tools.llm_finetuning.pairs import TextPool

_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeScores:
    """Share of the texts whose partner is the closest, 0 to 1."""

    first_to_second: float
    """First captions that find the second."""
    second_to_first: float
    """Second captions that find the first."""
    num_images: int
    """Images, and so candidates."""


def probe(
    encoder: TextEncoder,
    pool: TextPool,
    num_samples: int,
    progress: Callable[[int], object] = lambda _: None,
) -> ProbeScores:
    """Score an encoder on the first two texts of the first samples.

    Args:
        encoder: what is scored.
        pool: texts; every sample in it has at least two.
        num_samples: most samples.
        progress: told how many texts are done.
    """
    samples = pool.sample_ids[:num_samples]
    places = pool.of_samples(samples)
    sides = [
        _unit_vectors(encoder, pool.texts([p[side] for p in places]), progress) for side in (0, 1)
    ]
    scores = score_retrieval(sides[0], sides[1], np.arange(len(samples)), "probe")
    (rows,) = of_task(scores, RETRIEVAL)
    return ProbeScores(
        first_to_second=rows.recalls("image_to_text")[1].value,
        second_to_first=rows.recalls("text_to_image")[1].value,
        num_images=len(samples),
    )


def _unit_vectors(
    encoder: TextEncoder, texts: list[str], progress: Callable[[int], object]
) -> Tensor:
    """[len(texts), E] on the CPU."""
    found = []
    for first in range(0, len(texts), _BATCH_SIZE):
        batch = texts[first : first + _BATCH_SIZE]
        found.append(functional.normalize(encoder.encode(batch), dim=-1).cpu())
        progress(len(batch))
    return torch.cat(found)
