"""Optimisers, all from torch and timm, and the length of the gradients they are given."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import torch
from timm.optim.lamb import Lamb
from timm.optim.lion import Lion
from timm.optim.sgdw import SGDW
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tessera.training.config import OptimConfig

_NOT_DECAYED = ("bn", "ln", "bias", "logit_scale")
"""Parts of the names that open_clip leaves out of the decay, besides everything below 2-D."""

_RATE_SCALE = "rate_scale"
"""Key of a group's factor on the learning rate."""
_POSITIONS = "image.positional_embedding"
_BEFORE_BLOCKS = (
    "image.patch_embed.",
    "image.class_embedding",
    _POSITIONS,
    "image.ln_pre.",
)
_BEFORE_BLOCKS_OF_EVA = ("image.patch_embed.", _POSITIONS)
"""EVA-CLIP's code finds these by their names; the class embedding is called otherwise there."""
_BEFORE_BLOCKS_OF_TEXT = ("text.token_embedding.", "text.positional_embedding")
_LAYER = re.compile(r"(?:image|text)\.blocks\.(\d+)\.")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration, with open_clip's two groups of parameters.

    With layer decay or a tower's own rate there are two groups for each rate.

    AdamW is torch's (fused), LAMB, Lion and SGD with decoupled decay are timm's. LAMB's own
    clipping of gradients is off: `max_grad_norm` does it for all of them.

    Args:
        model: all its parameters that require a gradient are trained.
        config: which optimiser, its rates and decays.
    """
    scales = rate_scales(model, config)
    spared = (_POSITIONS,) if config.layer_rule == "eva_clip" else ()
    groups = [
        {"params": chosen, "weight_decay": decay, _RATE_SCALE: scale}
        for parameters, decay in zip(
            decay_groups(model, spared), (config.weight_decay, 0.0), strict=True
        )
        for scale in sorted({scales[id(p)] for p in parameters})
        if (chosen := [p for p in parameters if scales[id(p)] == scale])
    ]
    rate, betas = config.learning_rate, config.betas
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=config.eps, fused=True)
        case "lamb":
            return Lamb(groups, lr=rate, betas=betas, eps=config.eps, max_grad_norm=None)
        case "lion":
            return Lion(groups, lr=rate, betas=betas)
        case "sgd":
            return SGDW(groups, lr=rate, momentum=betas[0], nesterov=betas[0] > 0)


def decay_groups(
    model: nn.Module, spared: Collection[str] = ()
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trained parameters, cut in two by open_clip's rule: those that decay and those that do not.

    Vectors and scalars do not decay, nor does anything with `bn`, `ln`, `bias` or `logit_scale` in
    its name. Embeddings and position tables do.

    Args:
        model: its parameters that require a gradient are taken.
        spared: names of further parameters that do not decay.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_rule = parameter.ndim < 2 or any(part in name for part in _NOT_DECAYED)
            (plain if by_rule or name in spared else decayed).append(parameter)
    return decayed, plain


def rate_scales(model: nn.Module, config: OptimConfig) -> dict[int, float]:
    """What each parameter's learning rate is multiplied with, by its `id`.

    A tower's own rate counts as a factor on the common one. Layer-wise decay is as BEiT tunes (Bao
    et al. 2022): in a tower of L blocks, block l (from 0) learns at `decay**(L - l)` times the
    rate, what stands before the blocks at `decay**(L + 1)`, and what stands after them at the full
    rate. With the rule eva_clip the class embedding and the norm before the image tower's blocks
    learn at the full rate, as in EVA-CLIP's code, LLM2CLIP's base.

    Args:
        model: a `Clip`, or any module without towers, all of which learns at the common rate.
        config: the rates and decays.
    """
    before = _BEFORE_BLOCKS_OF_EVA if config.layer_rule == "eva_clip" else _BEFORE_BLOCKS
    common = config.learning_rate
    image, text = (config.image_learning_rate or common, config.text_learning_rate or common)
    names = dict(model.named_parameters())
    scales = {
        **_tower_scales(names, ("image.",), before, config.layer_decay, image / common),
        **_tower_scales(names, ("text.", "adapter."), _BEFORE_BLOCKS_OF_TEXT,
                        config.text_layer_decay, text / common),
    }  # fmt: skip
    return {id(parameter): scales.get(name, 1.0) for name, parameter in names.items()}


def _tower_scales(
    names: Iterable[str], tower: tuple[str, ...], before: tuple[str, ...], decay: float, own: float
) -> dict[str, float]:
    """The factors of a tower's parameters, by name."""
    mine = [name for name in names if name.startswith(tower)]
    layer = {name: int(found[1]) for name in mine if (found := _LAYER.match(name))}
    count = max(layer.values(), default=-1) + 1

    def depth(name: str) -> int:
        if name in layer:
            return count - layer[name]
        return count + 1 if name.startswith(before) else 0

    return {name: own * decay ** depth(name) for name in mine}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group the learning rate, times its own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_RATE_SCALE, 1.0)


def clip_gradients(model: nn.Module, longest: float) -> Tensor:
    """Shorten the gradient of all parameters together, and tell how long it was.

    Args:
        model: behind its backward pass, on one rank or spread over several.
        longest: Euclidean length it may have; 0 leaves it as it is.

    Returns:
        [] its length before, on the model's device, which is not read.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if longest > 0:
        nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
