"""Low-rank updates of a tower's matrices (LoRA; Hu et al. 2022, arXiv 2106.09685).

peft wraps modules by their forward pass; the packed attention reads `qkv.weight` itself. So the
update is a parametrisation of the weight: every reader of the weight gets the sum, in both towers
and in a text tower of transformers alike.

Shapes: O rows and I columns of a weight, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_ORIGINAL, _UPDATE = ".parametrizations.weight.original", ".parametrizations.weight.0."
_SIDES = ("image.", "text.")


class LowRankUpdate(nn.Module):
    """`W + alpha/r * up @ down`, which starts at W."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        rows, columns = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """[O, I] to [O, I] in the weight's type, before it is cast to that of a product.

        In bfloat16 a weight has no place for the small updates of a run's start.
        """
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def add_lora(tower: nn.Module, blocks: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a tower, and give every matrix of its blocks a low-rank update that is trained.

    Args:
        tower: changed in place.
        blocks: the part of it whose linear layers are updated.
        rank: r.
        alpha: an update counts alpha / r times.
    """
    tower.requires_grad_(False)
    for module in list(blocks.modules()):
        if isinstance(module, nn.Linear):
            update = LowRankUpdate(module.weight, rank, alpha)
            parametrize.register_parametrization(module, "weight", update)


def lora_state(clip: nn.Module) -> dict[str, Tensor]:
    """The updates, and the weights below them, by name: what a run needs to resume with them."""
    return {name: value for name, value in clip.state_dict().items() if "parametrizations" in name}


def load_lora_state(clip: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the updates of `lora_state` into a model that has them.

    Checkpoints of 0.1 hold those of the image tower alone, by their names inside it.

    Raises:
        ValueError: the model has updates that the state lacks, or the other way round.
    """
    named = {n if n.startswith(_SIDES) else f"image.{n}": value for n, value in state.items()}
    differing = sorted(named.keys() ^ lora_state(clip).keys())
    if differing:
        raise ValueError(
            f"{len(differing)} low-rank updates of the checkpoint do not fit this model, such as "
            f"{differing[0]}: resume with the tune and lora_rank that the run began with"
        )
    clip.load_state_dict(named, strict=False)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """`state_dict` with the sums as weights, as if the model had been trained without updates."""
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith(_ORIGINAL):
            weight = model.get_submodule(name.removesuffix(_ORIGINAL)).weight
            assert isinstance(weight, Tensor)
            state[f"{name.removesuffix(_ORIGINAL)}.weight"] = weight.detach()
        elif _UPDATE not in name:
            state[name] = value
    return state
