"""Low-rank updates of an image tower's matrices (LoRA; Hu et al. 2022, arXiv 2106.09685).

peft wraps modules by their forward pass; the packed attention reads `qkv.weight` itself. So the
update is a parametrisation of the weight: whoever reads it gets the sum.

Shapes: O rows and I columns of a weight, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tessera.model.vit import ImageTower

_ORIGINAL, _UPDATE = ".parametrizations.weight.original", ".parametrizations.weight.0."


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


def add_lora(tower: ImageTower, rank: int, alpha: float) -> None:
    """Freeze a tower, and give every matrix of its blocks a low-rank update that is trained.

    Args:
        tower: changed in place.
        rank: r.
        alpha: an update counts alpha / r times.
    """
    tower.requires_grad_(False)
    for module in list(tower.blocks.modules()):
        if isinstance(module, nn.Linear):
            update = LowRankUpdate(module.weight, rank, alpha)
            parametrize.register_parametrization(module, "weight", update)


def lora_state(tower: ImageTower) -> dict[str, Tensor]:
    """The updates, and the weights below them, by name: what a run needs to go on with them."""
    return {name: value for name, value in tower.state_dict().items() if "parametrizations" in name}


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
