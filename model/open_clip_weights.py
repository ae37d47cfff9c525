"""Weights to and from open_clip's state dicts, bit for bit.

Every tensor of ours is one of open_clip's under another name. Only the patch projection has
another layout: ours multiplies patches (y, x, channel) [W, p*p*3], theirs is a convolution
[W, 3, p, p].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.clip import Clip
from model.config import ClipConfig

_PATCH_WEIGHT = "image.patch_embed.weight"

# Ours and open_clip's; the first prefix that fits is replaced, then each part of the rest.
_PREFIXES = (
    (_PATCH_WEIGHT, "visual.conv1.weight"),
    ("image.blocks.", "visual.transformer.resblocks."),
    ("image.", "visual."),
    ("text.blocks.", "transformer.resblocks."),
    ("text.proj", "text_projection"),
    ("text.", ""),
)
_PARTS = (
    (".attn.qkv.", ".attn.in_proj_"),
    (".attn.out.", ".attn.out_proj."),
    (".mlp.up.", ".mlp.c_fc."),
    (".mlp.down.", ".mlp.c_proj."),
)


def load(clip: Clip, state_dict: Mapping[str, Tensor]) -> None:
    """Copies an open_clip state dict into a model, which changes wholly or not at all.

    Args:
        clip: Model to fill, of the same architecture.
        state_dict: As open_clip's `CLIP.state_dict()` gives it.

    Raises:
        ValueError: A tensor is missing, not known, of another shape, or of a type that the
            model's would round; names each.
    """
    own = clip.state_dict()
    theirs = {name: _open_clip_name(name) for name in own}
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
            converted[name] = _from_open_clip(name, value)
    if problems:
        raise ValueError(
            f"the state dict does not fit {clip.config.name!r}: {_some(problems)}; build the "
            "model under the name it was trained with"
        )
    clip.load_state_dict(converted)


def dump(clip: Clip) -> dict[str, Tensor]:
    """The model's weights under open_clip's names and layouts.

    They load strictly into open_clip's model of the same name or of `open_clip_config`. Like
    `Module.state_dict`, the result may share memory with the model.
    """
    return {
        _open_clip_name(name): _to_open_clip(clip.config, name, value)
        for name, value in clip.state_dict().items()
    }


def open_clip_config(config: ClipConfig) -> dict[str, Any]:
    """The model as open_clip's model JSON (`model_cfg`).

    Write it to `<name>.json` and pass that to `open_clip.add_model_config`, or call
    `open_clip.CLIP(**open_clip_config(config))`.
    """
    vision, text = config.vision, config.text
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.quick_gelu,
        "init_logit_scale": config.init_logit_scale,
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.width,
            "layers": vision.layers,
            "head_width": vision.head_width,
            "mlp_ratio": vision.mlp_ratio,
            "no_ln_pre": not vision.ln_pre,
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "layers": text.layers,
            "heads": text.heads,
            "mlp_ratio": text.mlp_ratio,
        },
    }


def _open_clip_name(name: str) -> str:
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for ours, theirs in _PARTS:
        name = name.replace(ours, theirs)
    return name


def _to_open_clip(config: ClipConfig, name: str, value: Tensor) -> Tensor:
    if name != _PATCH_WEIGHT:
        return value
    side = config.vision.patch_size
    return value.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2).contiguous()


def _from_open_clip(name: str, value: Tensor) -> Tensor:
    return value.permute(0, 2, 3, 1).flatten(1) if name == _PATCH_WEIGHT else value


def _mismatch(wanted: Tensor, value: Tensor) -> str | None:
    if value.shape != wanted.shape:
        return f"is {list(value.shape)}, wanted {list(wanted.shape)}"
    if torch.promote_types(value.dtype, wanted.dtype) != wanted.dtype:
        return f"is {value.dtype}, which {wanted.dtype} would round"
    return None


def _some(problems: list[str], limit: int = 20) -> str:
    more = f" and {len(problems) - limit} more" if len(problems) > limit else ""
    return ", ".join(problems[:limit]) + more
