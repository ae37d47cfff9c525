"""Linear probe: multinomial logistic regression on frozen unit features.

The objective is that of scikit-learn's `LogisticRegression`, divided by the number of samples:

    mean cross-entropy + weight_decay / 2 * |W|^2,    weight_decay = 1 / (C * M),

the bias not decayed. It is convex, so L-BFGS (Liu and Nocedal, 1989) finds the one answer whatever
the start. The weight decay is chosen on a part of the training data, as in CLIP (Radford et al.,
2021, appendix A.3): a coarse sweep over powers of ten, refined around the best.

Legend: M training images, C classes, d length of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.evaluation.encoder import Encoder
from tessera.evaluation.labelled import LabelledSet, open_labelled
from tessera.evaluation.scores import LINEAR_PROBE, WEIGHT_DECAY, Score, few_shot_metric
from tessera.evaluation.zero_shot import Accuracies, accuracies

_CHUNK = 16_384
"""Images whose logits are held at once: 64 MiB for 1,000 classes."""
_COARSE = tuple(10.0**power for power in range(-10, 1, 2))
"""Weight decays of the first sweep."""
_REFINEMENTS = 3
"""Each tries both neighbours of the best weight decay at the root of the ratio before."""
_HELD_OUT = 0.2
"""Share of each class's training images that the weight decay is chosen on."""
_MOST_STEPS = 1000
_MOST_HELD_OUT_SHOTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A trained classifier."""

    weight: Tensor
    """[C, d] float64."""
    bias: Tensor
    """[C] float64."""
    loss: float
    """The objective, nats."""

    def score(self, features: Tensor, labels: Tensor) -> Accuracies:
        """Accuracies on [M, d] features with [M] labels."""
        kind = features.dtype
        return accuracies(features, self.weight.to(kind), labels, self.bias.to(kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Features and labels of some images."""

    features: Tensor
    """[M, d] float32."""
    labels: Tensor
    """[M] long."""

    def take(self, rows: NDArray[np.int64]) -> Split:
        """Some of them."""
        at = torch.from_numpy(rows).to(self.labels.device)
        return Split(features=self.features[at], labels=self.labels[at])


def evaluate_linear_probe(
    encoder: Encoder, train: str, test: str, *, shots: Sequence[int] = (), seeds: int = 3
) -> list[Score] | None:
    """Train on one labelled set and test on another; every process must ask.

    Args:
        encoder: the model.
        train: see `open_labelled`.
        test: likewise, of the same classes.
        shots: also train on so many images of each class.
        seeds: draws of these images.

    Raises:
        FileNotFoundError: a set is missing.
        ValueError: a set has no labels, or the two have different class folders, or a class has too
            few images.
    """
    sets = open_pair(train, test, shots)
    encoded = [encoder.images(each.place, each.images(encoder.num_threads)) for each in sets]
    if not encoder.is_main:
        return None
    device = encoder.clip.logit_scale.device
    parts = []
    for labelled, images in zip(sets, encoded, strict=True):
        labels = torch.from_numpy(labelled.labels[images.places])
        has_label = labels >= 0
        parts.append(
            Split(
                features=images.features[has_label].to(device), labels=labels[has_label].to(device)
            )
        )
    known, unseen = parts
    num_classes = max(each.num_classes for each in sets)
    names = (train, test)
    few = [few_shot(known, unseen, num_classes, k, seeds, names=names) for k in shots]
    return [*probe(known, unseen, num_classes, names=names), *(row for rows in few for row in rows)]


def open_pair(train: str, test: str, shots: Sequence[int] = ()) -> tuple[LabelledSet, LabelledSet]:
    """Open both sets of a probe.

    Args:
        train: see `open_labelled`.
        test: likewise, of the same classes.
        shots: images of each class that few-shot probes will ask for.

    Raises:
        FileNotFoundError: a set is missing.
        ValueError: a set has no labels, the two have different class folders or class names, or a
            class has too few images.
    """
    one, other = open_labelled(train), open_labelled(test)
    if one.folders != other.folders:
        raise ValueError(
            f"{train} and {test} do not have the same class folders: their labels would not match"
        )
    names = [_names_of(each) for each in (one, other)]
    if names[0] and names[1] and names[0] != names[1]:
        raise ValueError(
            f"{train} and {test} do not have the same class names: their labels would not match"
        )
    counts = np.unique(one.labels[one.labels >= 0], return_counts=True)[1]
    if counts.max() * _HELD_OUT < 1:
        raise ValueError(_too_few_to_choose(train))
    for count in shots:
        _require_shots(count, int(counts.min()))
    return one, other


def doubts_of_pair(train: LabelledSet, test: LabelledSet) -> list[str]:
    """A sentence if pictures are in both sets of a probe."""
    files = train.files() & test.files()
    shared = len(train.pictures_in(files) & test.pictures_in(files)) if files else 0
    if not shared:
        return []
    return [
        f"{shared:,} of the {len(test.labels):,} pictures of the test set {test.place} are also "
        f"in the training set {train.place}: the linear probe has seen them, and its score says "
        "little about new pictures"
    ]


def _names_of(labelled: LabelledSet) -> list[str]:
    """Class names, where a set brings them; those of class folders are compared themselves."""
    try:
        return [] if labelled.folders else labelled.prompts().class_names
    except FileNotFoundError:
        return []


def _require_shots(shots: int, least: int) -> None:
    extra = min(shots, _MOST_HELD_OUT_SHOTS)
    if least < shots + extra:
        raise ValueError(
            f"{shots} shots need {shots + extra} images of each class ({extra} to choose the "
            f"weight decay), and a class has {least}"
        )


def _too_few_to_choose(train: str) -> str:
    least = math.ceil(1 / _HELD_OUT)
    return f"no class of {train} has {least} images: too few to choose a weight decay"


def probe(
    train: Split, test: Split, num_classes: int, *, names: tuple[str, str] = ("", "")
) -> list[Score]:
    """Choose the weight decay, train on all of `train`, and test.

    Args:
        train: of all classes.
        test: never looked at before the end.
        num_classes: C.
        names: of both sets, for the result.
    """
    groups = _by_class(train.labels, np.random.default_rng(0))
    held_out = np.concatenate([rows[: int(len(rows) * _HELD_OUT)] for rows in groups])
    kept = np.concatenate([rows[int(len(rows) * _HELD_OUT) :] for rows in groups])
    if not len(held_out):
        raise ValueError(_too_few_to_choose(names[0]))
    decay = choose_weight_decay(train.take(kept), train.take(held_out), num_classes)
    scores = fit(train, num_classes, decay).score(test.features, test.labels)
    shares = {
        "lp_acc1": (scores.acc1, 1 / num_classes),
        "lp_acc5": (scores.acc5, min(5, num_classes) / num_classes),
        "lp_mean_per_class_recall": (scores.mean_per_class_recall, 1 / num_classes),
    }
    row = partial(_row, names=names)
    return [
        *(row(name, *each, n=len(test.labels)) for name, each in shares.items()),
        row(WEIGHT_DECAY, decay, None, n=len(train.labels)),
    ]


def _row(
    metric: str, value: float, chance: float | None, *, n: int, names: tuple[str, str]
) -> Score:
    train, dataset = names
    return Score(
        dataset=dataset,
        task=LINEAR_PROBE,
        metric=metric,
        value=value,
        chance=chance,
        n=n,
        train=train,
    )


def few_shot(
    train: Split,
    test: Split,
    num_classes: int,
    shots: int,
    seeds: int,
    *,
    names: tuple[str, str] = ("", ""),
) -> list[Score]:
    """Train on a few images of each class, drawn anew for each seed.

    The weight decay is chosen on up to 4 further images of each class, as many as `shots` at most
    (Zhou et al. 2022, CoOp).

    Args:
        train: drawn from.
        test: what is scored.
        num_classes: C.
        shots: images of each class.
        seeds: draws.
        names: of both sets, for the result.

    Returns:
        A row for each draw.

    Raises:
        ValueError: a class has too few images.
    """
    extra = min(shots, _MOST_HELD_OUT_SHOTS)
    found = []
    for seed in range(seeds):
        groups = _by_class(train.labels, np.random.default_rng(seed))
        _require_shots(shots, min(map(len, groups)))
        chosen = train.take(np.concatenate([rows[:shots] for rows in groups]))
        held_out = train.take(np.concatenate([rows[shots : shots + extra] for rows in groups]))
        decay = choose_weight_decay(chosen, held_out, num_classes)
        found.append(fit(chosen, num_classes, decay).score(test.features, test.labels).acc1)
    return [
        _row(few_shot_metric(shots), acc1, 1 / num_classes, n=len(test.labels), names=names)
        for acc1 in found
    ]


def choose_weight_decay(train: Split, held_out: Split, num_classes: int) -> float:
    """The weight decay with the best top-1 accuracy on held-out images; of equals the largest."""
    scores: dict[float, float] = {}
    start: Probe | None = None
    # From strong to weak, each from the answer before: much closer than nothing.
    for decay in sorted(_COARSE, reverse=True):
        start = fit(train, num_classes, decay, start)
        scores[decay] = start.score(held_out.features, held_out.labels).acc1
    ratio = _COARSE[1] / _COARSE[0]
    for _ in range(_REFINEMENTS):
        ratio = math.sqrt(ratio)
        best = max(scores, key=lambda decay: (scores[decay], decay))
        for decay in (best / ratio, best * ratio):
            found = fit(train, num_classes, decay, start)
            scores[decay] = found.score(held_out.features, held_out.labels).acc1
    return max(scores, key=lambda decay: (scores[decay], decay))


@torch.no_grad()
def fit(train: Split, num_classes: int, weight_decay: float, start: Probe | None = None) -> Probe:
    """Minimise the objective.

    Products are in the features' type, sums over images and the optimiser in float64.

    Args:
        train: at least one image.
        num_classes: C.
        weight_decay: above 0.
        start: where to begin; zero if left out.
    """
    device, dim = train.features.device, train.features.shape[1]
    if start is None:
        parameters = torch.zeros(num_classes, dim + 1, dtype=torch.float64, device=device)
    else:
        parameters = torch.cat([start.weight, start.bias[:, None]], dim=1)
    parameters.grad = torch.zeros_like(parameters)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=_MOST_STEPS,
        max_eval=2 * _MOST_STEPS,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )
    closure = _objective(train, parameters, weight_decay)
    optimizer.step(closure)
    return Probe(
        weight=parameters[:, :-1].clone(), bias=parameters[:, -1].clone(), loss=float(closure())
    )


def _objective(train: Split, parameters: Tensor, weight_decay: float) -> Callable[[], Tensor]:
    """Sets the gradient and returns the loss, both summed over chunks of the images."""
    count = len(train.labels)

    def closure() -> Tensor:
        weight, bias = parameters[:, :-1], parameters[:, -1]
        loss = 0.5 * weight_decay * weight.square().sum()
        gradient = torch.zeros_like(parameters)
        gradient[:, :-1] = weight_decay * weight
        kind = train.features.dtype
        chunks = zip(train.features.split(_CHUNK), train.labels.split(_CHUNK), strict=True)
        for features, labels in chunks:
            log_p = torch.log_softmax(features @ weight.to(kind).T + bias.to(kind), dim=1)
            loss -= log_p.gather(1, labels[:, None]).double().sum() / count
            residual = log_p.exp_()
            residual[torch.arange(len(labels), device=labels.device), labels] -= 1
            gradient[:, :-1] += (residual.T @ features).double() / count
            gradient[:, -1] += residual.double().sum(dim=0) / count
        assert parameters.grad is not None
        parameters.grad.copy_(gradient)
        return loss

    return closure


def _by_class(labels: Tensor, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows of each class that occurs, shuffled."""
    numbers = labels.cpu().numpy()
    return [rng.permutation(np.flatnonzero(numbers == c)) for c in np.unique(numbers)]
