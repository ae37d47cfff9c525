"""How the towers compute, apart from what: types, memory and compilation."""

from __future__ import annotations

import dataclasses
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tessera.model.clip import Clip

_MOST_SHAPES = 72
"""Compiled variants of a block: 33 text totals (`pad_total`) and one image total, each with and
without pooling, and some to spare."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Choices that change a tower's speed and memory; only the types change its result."""

    compute_dtype: torch.dtype | None = None
    """Type of all products, norms and activations inside a block, weights being cast as they are
    used; None is the weights' own. Weights, their gradients and the optimiser keep their type."""
    residual_dtype: torch.dtype | None = None
    """Type of the residual stream between blocks; None is the weights' own."""
    checkpoint_blocks: bool = False
    """Keep only the inputs of blocks for the backward pass, and run each block again there."""
    static_shapes: bool = False
    """Let shapes depend on no sequence's length: text totals are padded, see `pad_total`."""
    max_patches: int | None = None
    """Most patches that an image of a batch may have; None is all of its grid."""

    def types(self, weight: torch.Tensor) -> tuple[torch.dtype, torch.dtype]:
        """Types of products and of the residual stream in a tower with this weight."""
        return self.compute_dtype or weight.dtype, self.residual_dtype or weight.dtype


def configure(
    clip: Clip,
    *,
    compute_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    checkpoint_blocks: bool = False,
    compile_blocks: bool = False,
    max_patches: int | None = None,
    backend: str = "inductor",
) -> None:
    """Set how both towers compute.

    Args:
        clip: Changed in place; its weights and their names stay.
        compute_dtype: See `Execution`.
        residual_dtype: See `Execution`.
        checkpoint_blocks: See `Execution`.
        compile_blocks: torch.compile each block. All blocks of a tower share the code, which is
            made anew for every total of tokens: image totals must be the same in all batches, as
            masks with an exact budget have them; text totals are padded.
        max_patches: See `Execution`. Attention's work is laid out for this length. On CUDA a
            longer image is not noticed and gives wrong features.
        backend: What torch.compile compiles with.
    """
    execution = Execution(
        compute_dtype=compute_dtype,
        residual_dtype=residual_dtype,
        checkpoint_blocks=checkpoint_blocks,
        static_shapes=compile_blocks,
        max_patches=max_patches,
    )
    for part in (*clip.towers, *([clip.adapter] if clip.adapter else [])):
        part.execution = execution
    if compile_blocks:
        torch._dynamo.config.recompile_limit = max(  # noqa: SLF001 (there is no other way)
            torch._dynamo.config.recompile_limit,  # noqa: SLF001
            _MOST_SHAPES,
        )
        for block in (block for tower in clip.towers for block in tower.blocks):
            block.compile(dynamic=False, backend=backend)


def own_types(device: torch.device) -> AbstractContextManager[object]:
    """In this block, types are those of `configure`: a caller's autocast has no effect."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    warnings.warn(
        "torch.autocast has no effect on Tessera's towers; set their types with "
        "model.execution.configure(clip, compute_dtype=torch.bfloat16)",
        stacklevel=4,
    )
    return torch.autocast(device.type, enabled=False)
