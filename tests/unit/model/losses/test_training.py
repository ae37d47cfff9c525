"""Whole runs of tiny linear towers against the same run in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.model import LossConfig, build_loss
from tessera.model.losses.config import METHODS
from tests.unit.model.losses import reference
from tests.unit.model.losses.linear_towers import (
    LEARNING_RATE,
    NUM_SAMPLES,
    STEPS_PER_PASS,
    Towers,
    batch_ids,
    data,
    train,
)


def numpy_run(config: LossConfig, num_steps: int) -> dict[str, np.ndarray]:
    """Forward, backward through the normalisation, and descent, in float64."""
    towers = {name: each.detach().double().numpy() for name, each in Towers().named_parameters()}
    inputs = {"image": data()[0].double().numpy(), "text": data()[1].double().numpy()}
    algorithm = reference.FastClip(config, NUM_SAMPLES, STEPS_PER_PASS)
    for step in range(num_steps):
        ids = batch_ids(step).numpy()
        raw = {name: inputs[name][ids] @ towers[name] for name in inputs}
        length = {name: np.linalg.norm(raw[name], axis=1, keepdims=True) for name in raw}
        unit = {name: raw[name] / length[name] for name in raw}
        found = algorithm.step(unit["image"], unit["text"], float(towers["logit_scale"]), ids, step)
        for name, slope in (("image", found.by_images), ("text", found.by_texts)):
            across = slope - unit[name] * (slope * unit[name]).sum(1, keepdims=True)
            towers[name] = towers[name] - LEARNING_RATE * inputs[name][ids].T @ (
                across / length[name]
            )
        towers["logit_scale"] = towers["logit_scale"] - LEARNING_RATE * found.by_scale
    return towers


@pytest.mark.parametrize("tile_size", [0, 3])
@pytest.mark.parametrize("kind", sorted(METHODS))
def test_fifty_steps(kind: str, tile_size: int) -> None:
    config = LossConfig(
        kind=kind,  # pyright: ignore[reportArgumentType]
        tile_size=tile_size,
        gamma_decay_passes=8,
    )
    loss = build_loss(config, num_samples=NUM_SAMPLES, steps_per_pass=STEPS_PER_PASS)
    found = train(loss, range(50), Towers()).parameters
    start = {name: each.detach().numpy() for name, each in Towers().named_parameters()}
    wanted = numpy_run(config, 50)
    for name in ("image", "text"):
        error = np.linalg.norm(found[name].numpy() - wanted[name]) / np.linalg.norm(wanted[name])
        assert error < 1e-4
        moved = np.linalg.norm(wanted[name] - start[name]) / np.linalg.norm(start[name])
        assert moved > 0.01, "the run went nowhere"
    assert float(found["logit_scale"]) == pytest.approx(float(wanted["logit_scale"]), rel=1e-4)
