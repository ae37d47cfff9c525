"""The types that a run computes in. Weights and the optimiser are float32 in all of them."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "pure_bfloat16"]

TYPES: dict[Precision, tuple[torch.dtype, torch.dtype]] = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.float32),
    "pure_bfloat16": (torch.bfloat16, torch.bfloat16),
}
"""Of products, norms and activations inside a block; of the residual stream between blocks."""

_LEAST_WIDTH = 384
"""Channels of an image tower from which bfloat16 products pay on a CPU that has them: below, the
casts and the small products cost about what is saved (docs/training.md)."""
_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""What processors call their bfloat16 products: x86's first, then ARM's."""


def choose_precision(
    asked: Literal["auto"] | Precision, device: torch.device, width: int
) -> Precision:
    """What `precision` means for a run that starts.

    `auto` follows from the device, the kind of processor and the model, never from a measurement:
    all ranks on equal machines choose alike, and so does the same command when it is repeated.

    Args:
        asked: of the configuration.
        device: where the model runs.
        width: channels of the image tower.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bfloat16"
    return "bfloat16" if width >= _LEAST_WIDTH and multiplies_bfloat16() else "float32"


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware."""
    found = torch.cpu.get_capabilities()
    return any(found.get(unit) is True for unit in _BFLOAT16_UNITS)
