"""The average of the weights: against float64, over batch sizes, and in and out of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tessera.training.ema import WeightAverage


def test_it_is_the_average_that_the_formula_gives() -> None:
    layer = nn.Linear(3, 2)
    average = WeightAverage(layer, nn.Linear(3, 2), half_life=1000)
    expected = layer.weight.detach().double().numpy().copy()
    draw = torch.Generator().manual_seed(0)
    for step in range(1, 60):
        layer.weight.data += torch.randn(2, 3, generator=draw)
        average.update(step * 64, 64)
        decay = 0.5 ** (64 / min(1000, 0.05 * step * 64))
        expected = decay * expected + (1 - decay) * layer.weight.detach().double().numpy()
    found = average.model.weight.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_half_as_much_after_the_half_life_with_any_batch_size() -> None:
    for batch in (10, 100):
        average = WeightAverage(nn.Linear(1, 1), nn.Linear(1, 1), half_life=1000)
        far = 10**9  # samples seen: the ramp-up is over
        kept = np.prod([average.decay(far, batch) for _ in range(1000 // batch)])
        assert kept == pytest.approx(0.5)


def test_a_stored_average_continues_bit_for_bit() -> None:
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    average = WeightAverage(layer, nn.Linear(4, 4), half_life=500)
    layer.weight.data += 1
    average.update(5000, 100)
    stored = {name: p.detach().clone() for name, p in average.model.named_parameters()}
    other.load_state_dict(layer.state_dict())
    restored = WeightAverage(other, nn.Linear(4, 4), half_life=500)
    restored.load(stored)
    for model, kept in ((layer, average), (other, restored)):
        model.weight.data *= 2
        kept.update(5100, 100)
    assert torch.equal(average.model.weight, restored.model.weight)
    assert torch.equal(average.model.bias, restored.model.bias)


def test_a_gathered_average_does_not_stay_in_a_sharded_model(tmp_path: Path) -> None:
    """FSDP2 keeps what a forward pass gathered of the outermost module until a backward pass."""
    layer, second, ones = nn.Linear(4, 3), nn.Linear(4, 3), torch.ones(1, 4)
    started = layer(ones).detach()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for each in (layer, second):
            fully_shard(each, mesh=mesh)
        average = WeightAverage(layer, second, half_life=100)
        with torch.no_grad():
            torch.testing.assert_close(second(ones), started)
            for weight in layer.parameters():
                weight.zero_()
            average.update(10**9, 100)
            torch.testing.assert_close(second(ones), started / 2)
            assert not layer(ones).any()
    finally:
        dist.destroy_process_group()
