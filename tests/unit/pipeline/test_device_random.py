"""Noise that a device draws is the host's bit for bit."""

import numpy as np
import torch

from tessera.pipeline import device_random
from tessera.pipeline.counter_random import Purpose, keys, uniforms


def test_noise_of_torch_is_that_of_numpy() -> None:
    ids = np.concatenate([np.arange(500), 2**40 + np.arange(500)])
    for seed, number in ((0, 0), (2**63 + 5, 3), (-1, 2**33)):
        draws = uniforms(seed, number, ids, Purpose.MASK, 197)
        expected = (np.floor(draws * 2**24) * 2.0**-24).astype(np.float32)
        key = keys(seed, number, ids, Purpose.MASK)
        found = device_random.noise(key, 197, torch.device("cpu"))
        assert found.dtype == torch.float32
        assert found.numpy().tobytes() == expected.tobytes()
