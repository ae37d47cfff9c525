"""The noise of masks drawn on a device, bit for bit what `counter_random` draws on the host.

Shapes: B samples, N patches of an image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.pipeline.device_copy import upload


def noise(keys: NDArray[np.uint64], num_patches: int, device: torch.device) -> Tensor:
    """Numbers in [0, 1) from the keys of samples; the host neither draws them nor waits.

    Args:
        keys: [B] from `counter_random.keys`.
        num_patches: N.
        device: where they are wanted.

    Returns:
        [B, N] float32, multiples of 2**-24: `counter_random.uniforms` rounded down.
    """
    key = upload(torch.from_numpy(keys.view(np.int64)), device)
    counter = torch.arange(1, num_patches + 1, device=device) * _signed(0x9E3779B97F4A7C15)
    words = _mix(key[:, None] + counter)
    return _shifted(words, 40).float() * 2.0**-24


def _mix(words: Tensor) -> Tensor:
    """`counter_random.mix`: sums and products of int64 wrap around as those of uint64 do."""
    words = (words ^ _shifted(words, 30)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ _shifted(words, 27)) * _signed(0x94D049BB133111EB)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shifted to the right as unsigned numbers are: zeros come in."""
    return (words >> bits) & ((1 << 64 - bits) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64)
