"""The average of the weights: against float64, over batch sizes, and in and out of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from training.ema import WeightAverage


def test_it_is_the_average_that_the_formula_gives() -> None:
    layer = nn.Linear(3, 2)
    average = WeightAverage(layer, half_life=1000)
    expected = layer.weight.detach().double().numpy().copy()
    draw = torch.Generator().manual_seed(0)
    for step in range(1, 60):
        layer.weight.data += torch.randn(2, 3, generator=draw)
        average.update(step * 64, 64)
        decay = 0.5 ** (64 / min(1000, 0.05 * step * 64))
        expected = decay * expected + (1 - decay) * layer.weight.detach().double().numpy()
    trained = layer.weight.detach().clone()
    with average.in_place():
        np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(layer.weight, trained)
    average.copy_into_model()
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_half_as_much_after_the_half_life_with_any_batch_size() -> None:
    for batch in (10, 100):
        average = WeightAverage(nn.Linear(1, 1), half_life=1000)
        far = 10**9  # samples seen: the ramp-up is over
        kept = np.prod([average.decay(far, batch) for _ in range(1000 // batch)])
        assert kept == pytest.approx(0.5)


def test_a_stored_average_goes_on_bit_for_bit() -> None:
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    average = WeightAverage(layer, half_life=500)
    layer.weight.data += 1
    average.update(5000, 100)
    with average.in_place():
        stored = {name: p.detach().clone() for name, p in layer.named_parameters()}
    other.load_state_dict(layer.state_dict())
    restored = WeightAverage(other, half_life=500)
    restored.load(other, stored)
    for model, kept in ((layer, average), (other, restored)):
        model.weight.data *= 2
        kept.update(5100, 100)
        kept.copy_into_model()
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_what_goes_wrong_inside_does_not_leave_the_average_in_the_model() -> None:
    layer = nn.Linear(2, 2)
    average = WeightAverage(layer, half_life=500)
    layer.weight.data += 1
    trained = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="disk"), average.in_place():
        raise RuntimeError("disk")
    assert torch.equal(layer.weight, trained)
