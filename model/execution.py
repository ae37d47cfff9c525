"""How the towers compute, apart from what: type, memory and compilation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from model.clip import Clip

_MOST_SHAPES = 72
"""Compiled variants of a block: 33 text totals (`pad_total`) and one image total, each with and
without pooling, and some to spare."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Choices that change a tower's speed and memory; only `dtype` changes its result."""

    dtype: torch.dtype | None = None
    """Type of the residual stream and of all products, weights being cast as they are used; None
    is the weights' own, or that of autocast. Weights, their gradients and the optimiser keep their
    type."""
    checkpoint_blocks: bool = False
    """Keep only the inputs of blocks for the backward pass, and run each block again there."""
    static_shapes: bool = False
    """Let shapes depend on no sequence's length: text totals are padded, see `pad_total`."""


def configure(
    clip: Clip,
    *,
    dtype: torch.dtype | None = None,
    checkpoint_blocks: bool = False,
    compile_blocks: bool = False,
    backend: str = "inductor",
) -> None:
    """Set how both towers compute.

    Args:
        clip: Changed in place; its weights and their names stay.
        dtype: See `Execution`.
        checkpoint_blocks: See `Execution`.
        compile_blocks: torch.compile each block. All blocks of a tower share the code, which is
            made anew for every total of tokens: image totals must be the same in all batches, as
            masks with an exact budget have them; text totals are padded.
        backend: What torch.compile compiles with.
    """
    execution = Execution(
        dtype=dtype, checkpoint_blocks=checkpoint_blocks, static_shapes=compile_blocks
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
