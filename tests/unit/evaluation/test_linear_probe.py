"""The logistic regression against its own optimality conditions, and scikit-learn's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tessera.evaluation import linear_probe
from tessera.evaluation.linear_probe import Split, choose_weight_decay, few_shot, fit, probe
from tessera.evaluation.scores import LINEAR_PROBE, of_task


def clusters(per_class: int, seed: int, num_classes: int = 6, dim: int = 20) -> Split:
    """Unit features around one centre for each class, near enough to be confused."""
    centres = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    noise = torch.randn(len(labels), dim, generator=draw)
    return Split(features=F.normalize(centres[labels] + 1.5 * noise, dim=1), labels=labels)


@pytest.mark.parametrize("decay", [1e-1, 1e-3, 1e-5])
def test_the_gradient_vanishes_at_the_answer(decay: float) -> None:
    train = clusters(40, 0)
    found = fit(train, 6, decay)
    weight, bias = found.weight.requires_grad_(), found.bias.requires_grad_()
    logits = train.features.double() @ weight.T + bias
    loss = F.cross_entropy(logits, train.labels) + decay / 2 * weight.square().sum()
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    for parameter in (weight, bias):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 1e-5


def test_chunks_and_the_start_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train = clusters(40, 0)
    train = replace(train, features=train.features.double())
    whole = fit(train, 6, 1e-3)
    monkeypatch.setattr(linear_probe, "_CHUNK", 32)
    again = fit(train, 6, 1e-3, start=fit(train, 6, 1.0))
    # Each ends at a gradient of at most 1e-7, where no direction bends by less than 1e-3.
    torch.testing.assert_close(again.weight, whole.weight, atol=2e-4, rtol=0)


def test_scores_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    train, test = clusters(60, 0), clusters(200, 1)
    for decay in (1e-2, 1e-4, 1e-6):
        theirs = sklearn.LogisticRegression(
            C=1 / (decay * len(train.labels)), max_iter=5000, tol=1e-8
        ).fit(train.features.double().numpy(), train.labels.numpy())
        expected = theirs.score(test.features.double().numpy(), test.labels.numpy())
        ours = fit(train, 6, decay).score(test.features, test.labels)
        assert ours.acc1 == pytest.approx(expected, abs=0.002)


def test_the_weight_decay_is_the_one_that_generalises() -> None:
    train, held_out = clusters(8, 0, dim=100), clusters(100, 1, dim=100)
    chosen = choose_weight_decay(train, held_out, 6)
    best = fit(train, 6, chosen).score(held_out.features, held_out.labels).acc1
    for decay in np.logspace(-8, 0, 9):
        other = fit(train, 6, float(decay)).score(held_out.features, held_out.labels).acc1
        assert best >= other - 0.01


def test_a_probe_learns_and_says_what_it_did() -> None:
    result = probe(clusters(40, 0), clusters(50, 1), 6, names=("train", "test"))
    (rows,) = of_task(result, LINEAR_PROBE)
    acc1 = rows["lp_acc1"]
    assert (rows["weight_decay"].n, acc1.n, acc1.chance) == (240, 300, 1 / 6)
    assert (rows.train, rows.dataset) == ("train", "test")
    assert 0.6 < acc1.value < 1
    assert acc1.value == pytest.approx(rows["lp_mean_per_class_recall"].value)
    assert rows["lp_acc5"].value > acc1.value


def test_more_shots_are_better_and_every_seed_draws_others() -> None:
    train, test = clusters(40, 0), clusters(100, 1)
    one, many = (few_shot(train, test, 6, shots, 3) for shots in (1, 16))
    assert [len(each) for each in (one, many)] == [3, 3]
    assert len({row.value for row in one}) > 1
    assert max(row.value for row in one) < min(row.value for row in many)
    assert one == few_shot(train, test, 6, 1, 3)


def test_too_few_images_are_refused_with_the_number() -> None:
    with pytest.raises(ValueError, match="20 images of each class"):
        few_shot(clusters(10, 0), clusters(10, 1), 6, 16, 1)
    with pytest.raises(ValueError, match="too few to choose a weight decay"):
        probe(clusters(4, 0), clusters(4, 1), 6, names=("tiny", "test"))
