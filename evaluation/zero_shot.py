"""Zero-shot classification: the class whose prompts lie nearest to the picture.

Legend: M images, C classes, d length of a feature.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.evaluation.encoder import Encoder
from tessera.evaluation.labelled import open_labelled
from tessera.evaluation.scores import NUM_BAD, NUM_PROMPTS, ZERO_SHOT, Score
from tessera.pipeline.index.class_prompts import Prompts

_ROWS = 4096
"""Images whose class scores are held at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotRun:
    """Scores of one data set and its commonest mistakes."""

    scores: list[Score]
    """acc1, acc5, mean_per_class_recall, num_prompts, num_bad."""
    confusions: list[tuple[str, str, int]]
    """(true class, predicted class, images), commonest first, right ones left out."""
    predicted: Tensor
    """[M] long, class ranked first of each labelled image, in the set's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracies:
    """How often a classifier is right; shares are fractions 0 .. 1."""

    acc1: float
    """Share whose class is ranked first."""
    acc5: float
    """Share whose class is among the first five."""
    mean_per_class_recall: float
    """Mean over the classes that occur of the share ranked first."""
    predicted: Tensor
    """[M] long, class ranked first."""


def evaluate_zero_shot(encoder: Encoder, place: str) -> ZeroShotRun | None:
    """Classify all labelled images of a set; every process must ask, rank 0 gets the scores.

    Args:
        encoder: the model.
        place: see `open_labelled`.

    Raises:
        FileNotFoundError: the set, its class names or its templates are missing.
        ValueError: it has no labels, or labels beyond the class names.
    """
    labelled = open_labelled(place)
    prompts = labelled.prompts()
    classes = class_features(encoder, prompts)
    images = encoder.images(place, labelled.images(encoder.num_threads))
    if not encoder.is_main:
        return None
    labels = torch.from_numpy(labelled.labels[images.places])
    known = labels >= 0
    features = images.features if known.all() else images.features[known]
    return score_zero_shot(
        features,
        classes,
        labels[known],
        prompts.class_names,
        place,
        num_prompts=len(prompts.class_names) * len(prompts.templates),
        num_bad=images.num_bad,
    )


def class_features(encoder: Encoder, prompts: Prompts) -> Tensor:
    """Mean of each class's unit prompt features, made unit again (Radford et al., 2021).

    Returns:
        [C, d] on rank 0, [0, d] elsewhere.
    """
    texts = [text for c in range(len(prompts.class_names)) for text in prompts.of_class(c)]
    by_class = encoder.prompts(texts).unflatten(0, (-1, len(prompts.templates)))
    return F.normalize(by_class.mean(dim=1), dim=1)


def score_zero_shot(
    images: Tensor,
    classes: Tensor,
    labels: Tensor,
    class_names: list[str],
    dataset: str,
    *,
    num_prompts: int = 0,
    num_bad: int = 0,
) -> ZeroShotRun:
    """Accuracies by cosine similarity.

    Args:
        images: [M, d] unit length.
        classes: [C, d] unit length.
        labels: [M] long, 0 .. C-1.
        class_names: C names.
        dataset: name for the result.
        num_prompts: texts that the classes' features come from.
        num_bad: images that could not be decoded.
    """
    found = accuracies(images, classes, labels)
    wrong = Counter(
        (class_names[true], class_names[guess])
        for true, guess in zip(labels.tolist(), found.predicted.tolist(), strict=True)
        if true != guess
    )
    num_classes = len(class_names)
    rows = (
        ("acc1", found.acc1, 1 / num_classes),
        ("acc5", found.acc5, min(5, num_classes) / num_classes),
        ("mean_per_class_recall", found.mean_per_class_recall, 1 / num_classes),
        (NUM_PROMPTS, num_prompts, None),
        (NUM_BAD, num_bad, None),
    )
    return ZeroShotRun(
        scores=[
            Score(
                dataset=dataset,
                task=ZERO_SHOT,
                metric=metric,
                value=value,
                chance=chance,
                n=len(labels),
            )
            for metric, value, chance in rows
        ],
        confusions=[(*pair, count) for pair, count in wrong.most_common(10)],
        predicted=found.predicted,
    )


def accuracies(
    images: Tensor, classes: Tensor, labels: Tensor, bias: Tensor | None = None
) -> Accuracies:
    """How often the largest product with a class's vector is the right class's.

    Args:
        images: [M, d].
        classes: [C, d].
        labels: [M] long, 0 .. C-1.
        bias: [C] added to the products.
    """
    num_classes = len(classes)
    best = torch.cat(
        [
            (rows @ classes.T + (0 if bias is None else bias)).topk(min(5, num_classes)).indices
            for rows in images.split(_ROWS)
        ]
    )
    hits = best == labels[:, None]
    per_class = torch.zeros(num_classes, dtype=torch.float64, device=labels.device).scatter_reduce(
        0, labels, hits[:, 0].double(), "mean", include_self=False
    )
    return Accuracies(
        acc1=hits[:, 0].double().mean().item(),
        acc5=hits.any(dim=1).double().mean().item(),
        mean_per_class_recall=per_class[labels.unique()].mean().item(),
        predicted=best[:, 0],
    )
