"""Zero-shot classification: the class whose prompts lie nearest to the picture.

A data set is an index whose samples carry labels, in CLIP_benchmark's layout: beside the shards lie
`classnames.txt` (line k names class k) and `zeroshot_classification_templates.txt` (one template a
line, `{c}` stands for the name).

Legend: M images, C classes, d length of a feature.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.features import PackedTexts, Progress, encode_images, encode_texts
from evaluation.report.data import ZeroShotResult
from model import Clip
from pipeline import LoaderConfig
from pipeline.index import Index
from pipeline.selection import open_dataset
from pipeline.storage import folder_of, read_text
from pipeline.tokenizer import tokenize_prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotRun:
    """Scores of one data set and its commonest mistakes."""

    result: ZeroShotResult
    """Accuracies and what guessing gives."""
    confusions: list[tuple[str, str, int]]
    """(true class, predicted class, images), commonest first, right ones left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Class names and templates of a data set."""

    class_names: list[str]
    """Line k is class k of the labels."""
    templates: list[str]
    """Sentences with `{c}` where the name goes."""


def evaluate_zero_shot(
    clip: Clip, index_dir: str, config: LoaderConfig, progress: Progress | None = None
) -> ZeroShotRun:
    """Classify all labelled images of an index or a selection.

    Args:
        clip: the model.
        index_dir: `INDEX`, or `INDEX@SELECTION`.
        config: from `evaluation_config`.
        progress: told how many images and prompts are done.

    Raises:
        FileNotFoundError: the class names or the templates are missing.
        ValueError: the index has no labels, or labels beyond the class names.
    """
    index, prompts = open_labelled(index_dir)
    images = encode_images(clip, index_dir, config, progress)
    labels = torch.from_numpy(index.label[images.sample_ids].astype("int64"))
    labelled = labels >= 0
    classes = class_features(clip, prompts, config, progress)
    scores = images.features[labelled] @ classes.T
    return score_zero_shot(scores, labels[labelled], prompts.class_names, index_dir)


def open_labelled(index_dir: str) -> tuple[Index, Prompts]:
    """Open an index for classification and the names of its classes.

    Raises:
        FileNotFoundError: the index, the class names or the templates are missing.
        ValueError: the index has no labels, or labels beyond the class names.
    """
    dataset = open_dataset(index_dir)
    index = dataset.index
    prompts = read_prompts(folder_of(index.shards[0].location))
    highest = int(dataset.of_samples(index.label).max())
    if highest < 0:
        raise ValueError(f"{index_dir} has no class labels: its samples have no .cls member")
    if highest >= len(prompts.class_names):
        raise ValueError(
            f"{index_dir} has label {highest}, but classnames.txt only "
            f"{len(prompts.class_names)} lines"
        )
    return index, prompts


def read_prompts(folder: str | Path) -> Prompts:
    """Read the class names and templates that lie beside shards.

    Raises:
        FileNotFoundError: one of the two files is missing.
    """
    lines = []
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        path = f"{folder}/{name}"
        try:
            text = read_text(path)
        except FileNotFoundError:
            msg = f"zero-shot evaluation needs {path}, one entry a line"
            raise FileNotFoundError(msg) from None
        lines.append([line for line in text.splitlines() if line])
    return Prompts(class_names=lines[0], templates=lines[1])


def class_features(
    clip: Clip, prompts: Prompts, config: LoaderConfig, progress: Progress | None = None
) -> Tensor:
    """Mean of each class's unit prompt features, made unit again: [C, d] (Radford et al., 2021)."""
    texts = [t.replace("{c}", name) for name in prompts.class_names for t in prompts.templates]
    features = encode_texts(clip, _packed(texts, config), progress)
    by_class = features.view(len(prompts.class_names), len(prompts.templates), -1)
    return F.normalize(by_class.mean(dim=1), dim=1)


def score_zero_shot(
    scores: Tensor, labels: Tensor, class_names: list[str], dataset: str
) -> ZeroShotRun:
    """Accuracies from class scores.

    Args:
        scores: [M, C], higher is more likely.
        labels: [M] long, 0 .. C-1.
        class_names: C names.
        dataset: name for the result.
    """
    num_classes = len(class_names)
    best = scores.topk(min(5, num_classes), dim=1).indices
    hits = best == labels[:, None]
    per_class = torch.zeros(num_classes).scatter_reduce(
        0, labels, hits[:, 0].float(), "mean", include_self=False
    )
    present = labels.unique()
    wrong = Counter(
        (class_names[true], class_names[guess])
        for true, guess in zip(labels.tolist(), best[:, 0].tolist(), strict=True)
        if true != guess
    )
    result = ZeroShotResult(
        dataset=dataset,
        num_classes=num_classes,
        num_images=len(labels),
        acc1=hits[:, 0].double().mean().item(),
        acc5=hits.any(dim=1).double().mean().item(),
        mean_per_class_recall=per_class[present].double().mean().item(),
        chance=1 / num_classes,
    )
    return ZeroShotRun(
        result=result, confusions=[(*pair, count) for pair, count in wrong.most_common(10)]
    )


def _packed(texts: list[str], config: LoaderConfig) -> Iterator[PackedTexts]:
    for start in range(0, len(texts), config.batch_size):
        yield tokenize_prompts(texts[start : start + config.batch_size], config.context_length)
