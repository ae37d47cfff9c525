"""Weights to and from open_clip's state dicts, bit for bit.

Every tensor of ours is one of open_clip's under another name. Two have another layout: our patch
projection multiplies patches (y, x, channel) [W, p*p*3] where theirs is a convolution
[W, 3, p, p], and a text projection with a bias is a linear layer [d, W] in open_clip.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tessera.model.clip import Clip
from tessera.model.config import ClipConfig
from tessera.model.lora import merged_state
from tessera.model.open_clip_config import open_clip_config

__all__ = ["dump", "is_text_name", "load", "open_clip_config", "with_text_names"]

_PATCH_WEIGHT = "image.patch_embed.weight"
_IMAGE_POSITIONS = "image.positional_embedding"
_TEXT_PROJ, _TEXT_PROJ_BIAS = "text.proj", "text.proj_bias"

_NOT_TEXT = ("visual.", "logit_", "adapter.")
"""How tensors begin that no text tower has. open_clip has no adapter: its names are ours."""

# Ours and open_clip's; the first prefix that fits is replaced, then each part of the rest.
_PREFIXES = (
    (_PATCH_WEIGHT, "visual.conv1.weight"),
    ("image.blocks.", "visual.transformer.resblocks."),
    ("image.", "visual."),
    ("text.blocks.", "transformer.resblocks."),
    (_TEXT_PROJ_BIAS, "text_projection.bias"),
    (_TEXT_PROJ, "text_projection"),
    ("text.", ""),
)
_PARTS = (
    (".attn.qkv.", ".attn.in_proj_"),
    (".attn.out.", ".attn.out_proj."),
    (".mlp.up.", ".mlp.c_fc."),
    (".mlp.down.", ".mlp.c_proj."),
)


# The same for an image tower that open_clip has from timm.
_TIMM_PREFIXES = (
    ("image.patch_embed.", "visual.trunk.patch_embed.proj."),
    (_IMAGE_POSITIONS, "visual.trunk.pos_embed"),
    ("image.ln_post.", "visual.trunk.norm."),
    ("image.pool.query.", "visual.trunk.attn_pool.q."),
    ("image.pool.key_value.", "visual.trunk.attn_pool.kv."),
    ("image.pool.out.", "visual.trunk.attn_pool.proj."),
    ("image.pool.ln.", "visual.trunk.attn_pool.norm."),
    ("image.pool.", "visual.trunk.attn_pool."),
    ("image.", "visual.trunk."),
)
_TIMM_PARTS = (
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".attn.out.", ".attn.proj."),
    (".mlp.up.", ".mlp.fc1."),
    (".mlp.down.", ".mlp.fc2."),
)
_TIMM_DIMENSIONS = {_IMAGE_POSITIONS: 1, "image.pool.latent": 2}
"""Dimensions of length 1 that timm's tensors have before ours."""


def load(clip: Clip, state_dict: Mapping[str, Tensor]) -> None:
    """Copies an open_clip state dict into a model, which changes wholly or not at all.

    Args:
        clip: Model to fill, of the same architecture.
        state_dict: As `state_dict()` of open_clip's `CLIP` (or `CustomTextCLIP`) gives it.

    Raises:
        ValueError: A tensor is missing, not known, of another shape, or of a type that the
            model's would round; names each.
    """
    own = clip.state_dict()
    theirs = {name: _open_clip_name(clip.config, name) for name in own}
    expected = set(theirs.values())
    problems = [f"missing {name}" for name in sorted(expected - set(state_dict))]
    problems += [f"unexpected {name}" for name in sorted(set(state_dict) - expected)]
    converted = {}
    for name, their_name in theirs.items():
        if their_name not in state_dict:
            continue
        value = state_dict[their_name]
        problem = _mismatch(_to_open_clip(clip.config, name, own[name]), value)
        if problem:
            problems.append(f"{their_name} {problem}")
        else:
            converted[name] = _from_open_clip(clip.config, name, value)
    if problems:
        raise ValueError(
            f"the state dict does not fit {clip.config.name!r}: {_some(problems)}; build the "
            "model under the name it was trained with"
        )
    clip.load_state_dict(converted)


def dump(clip: Clip) -> dict[str, Tensor]:
    """The model's weights under open_clip's names and layouts.

    They load strictly into open_clip's model of the same name or of `open_clip_config`, unless the
    model has an adapter, which open_clip lacks. Low-rank updates are merged. Like
    `Module.state_dict`, the result may share memory with the model.
    """
    return {
        _open_clip_name(clip.config, name): _to_open_clip(clip.config, name, value)
        for name, value in merged_state(clip).items()
    }


def is_text_name(name: str) -> bool:
    """Whether a tensor of an open_clip state dict belongs to the text tower, in either naming."""
    return not name.startswith(_NOT_TEXT)


def with_text_names(state_dict: Mapping[str, Tensor], *, custom_text: bool) -> dict[str, Tensor]:
    """An open_clip state dict, its text tower named as `CLIP` or as `CustomTextCLIP` names it.

    Args:
        state_dict: Named in either way.
        custom_text: Whether the result is for `CustomTextCLIP` (`text.*`).
    """
    plain = {name.removeprefix("text."): value for name, value in state_dict.items()}
    if not custom_text:
        return plain
    return {f"text.{name}" if is_text_name(name) else name: value for name, value in plain.items()}


def image_positions_name(config: ClipConfig) -> str:
    """Name of the image tower's position table in an open_clip state dict."""
    return _open_clip_name(config, _IMAGE_POSITIONS)


def _open_clip_name(config: ClipConfig, name: str) -> str:
    theirs, prefixes, parts = name, _PREFIXES, _PARTS
    if config.vision.timm_model and name.startswith("image."):
        prefixes, parts = _TIMM_PREFIXES, _TIMM_PARTS
    for prefix, replacement in prefixes:
        if name.startswith(prefix):
            theirs = replacement + name.removeprefix(prefix)
            break
    for part, replacement in parts:
        theirs = theirs.replace(part, replacement)
    if name == _TEXT_PROJ and config.text.projection_bias:
        theirs += ".weight"
    return f"text.{theirs}" if config.custom_text and name.startswith("text.") else theirs


def _to_open_clip(config: ClipConfig, name: str, value: Tensor) -> Tensor:
    if name == _PATCH_WEIGHT:
        side = config.vision.patch_size
        return value.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2).contiguous()
    if name == _TEXT_PROJ and config.text.projection_bias:
        return value.T.contiguous()
    if config.vision.timm_model and name in _TIMM_DIMENSIONS:
        return value.reshape(*[1] * _TIMM_DIMENSIONS[name], *value.shape)
    return value


def _from_open_clip(config: ClipConfig, name: str, value: Tensor) -> Tensor:
    if name == _PATCH_WEIGHT:
        return value.permute(0, 2, 3, 1).flatten(1)
    if config.vision.timm_model and name in _TIMM_DIMENSIONS:
        return value.flatten(0, _TIMM_DIMENSIONS[name])
    return value.T if name == _TEXT_PROJ and config.text.projection_bias else value


def _mismatch(wanted: Tensor, value: Tensor) -> str | None:
    if value.shape != wanted.shape:
        return f"is {list(value.shape)}, wanted {list(wanted.shape)}"
    if torch.promote_types(value.dtype, wanted.dtype) != wanted.dtype:
        return f"is {value.dtype}, which {wanted.dtype} would round"
    return None


def _some(problems: list[str], limit: int = 20) -> str:
    more = f" and {len(problems) - limit} more" if len(problems) > limit else ""
    return ", ".join(problems[:limit]) + more
