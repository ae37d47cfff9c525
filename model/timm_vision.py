"""Vision transformers of timm as open_clip's SigLIP models have them, read from timm itself.

timm's function of a name is asked for the model without its memory; what it built is compared with
what our tower would be, so that a model with any other part is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tessera.model.config import Activation, VisionConfig

KEYS = {"image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj",
        "timm_drop", "timm_drop_path"}  # fmt: skip
"""Keys of `vision_cfg` that are read, or that have no effect on what the tower computes."""

_POOLS = ("map", "avg")
Rgb = tuple[float, float, float]


def vision_from_timm(
    name: str, raw: Mapping[str, Any], embed_dim: int, pixels: tuple[Rgb, Rgb]
) -> VisionConfig:
    """The tower of a `vision_cfg` that names a timm model.

    Args:
        name: of the whole model, for messages.
        raw: the `vision_cfg`.
        embed_dim: length of the model's features.
        pixels: mean and standard deviation that pixels are normalised with.

    Raises:
        ValueError: the tower is no plain ViT without a class token; says what is unlike.
    """
    model_name, pool = raw["timm_model_name"], raw.get("timm_pool", "avg")
    problems = [f"vision_cfg.{key}={raw[key]!r}" for key in sorted(set(raw) - KEYS)]
    if pool not in _POOLS:
        problems.append(f"vision_cfg.timm_pool={pool!r} (known are {', '.join(_POOLS)})")
    if raw.get("timm_proj") != "none":
        problems.append(f"vision_cfg.timm_proj={raw.get('timm_proj')!r} (only none)")
    if problems:
        raise ValueError(f"cannot build {name!r}: {'; '.join(problems)} is not supported")
    trunk = _without_memory(model_name, raw, pool)
    unlike = _unlike(trunk)
    if unlike:
        raise ValueError(
            f"cannot build {name!r}: its image tower is timm's {model_name} with "
            f"{', '.join(unlike)}; only plain ViTs without a class token are supported"
        )
    if trunk.embed_dim != embed_dim:
        raise ValueError(
            f"cannot build {name!r}: features of timm's {model_name} have {trunk.embed_dim} "
            f"numbers, and embed_dim is {embed_dim}"
        )
    block = trunk.blocks[0]
    hidden = block.mlp.fc1.out_features
    return VisionConfig(
        image_size=trunk.patch_embed.img_size[0],
        patch_size=trunk.patch_embed.patch_size[0],
        width=trunk.embed_dim,
        layers=len(trunk.blocks),
        head_width=trunk.embed_dim // block.attn.num_heads,
        mlp_ratio=hidden / trunk.embed_dim,
        activation=_activation(block.mlp.act),
        ln_eps=block.norm1.eps,
        ln_pre=False,
        pool=pool,
        class_token=False,
        patch_bias=True,
        projection=False,
        pixel_mean=pixels[0],
        pixel_std=pixels[1],
        timm_model=model_name,
    )


def timm_vision_cfg(config: VisionConfig) -> dict[str, Any]:
    """The reverse of `vision_from_timm`."""
    return {
        "image_size": config.image_size,
        "timm_model_name": config.timm_model,
        "timm_model_pretrained": False,
        "timm_pool": config.pool,
        "timm_proj": "none",
    }


def _without_memory(model_name: str, raw: Mapping[str, Any], pool: str) -> Any:
    import timm  # takes seconds

    options = {"img_size": raw["image_size"]} if "image_size" in raw else {}
    try:
        with torch.device("meta"):
            return timm.create_model(model_name, num_classes=0, global_pool=pool, **options)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"timm cannot build {model_name!r}: {error}") from error


def _unlike(trunk: Any) -> list[str]:
    """Parts of a timm model that our tower lacks."""
    from timm.layers.attention import Attention
    from timm.layers.mlp import Mlp
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(trunk, VisionTransformer):
        return [f"the class {type(trunk).__name__}"]
    found = _unlike_embedding(trunk)
    others = [trunk.norm_pre, trunk.fc_norm]
    blocks: Any = trunk.blocks
    for block in blocks:
        kinds = [type(part) for part in (block, block.attn, block.mlp)]
        if kinds != [Block, Attention, Mlp]:
            return [*found, f"blocks of {', '.join(kind.__name__ for kind in kinds)}"]
        others += [block.ls1, block.ls2, block.attn.q_norm, block.attn.k_norm,
                   getattr(block.attn, "norm", nn.Identity()), block.mlp.norm]  # fmt: skip
    if not all(isinstance(part, nn.Identity) for part in others):
        found.append("norms or scales in other places")
    return found + _unlike_details(trunk.blocks[0], trunk.norm, trunk.attn_pool)


def _unlike_embedding(trunk: Any) -> list[str]:
    embed = trunk.patch_embed
    sides = set(embed.img_size), set(embed.patch_size)
    unlike = {
        "a class token": trunk.cls_token is not None or trunk.num_prefix_tokens > 0,
        "another patch embedding": getattr(embed.proj, "bias", None) is None
        or not isinstance(embed.norm, nn.Identity),
        "pictures or patches that are not square": max(map(len, sides)) > 1,
    }
    return [words for words, is_so in unlike.items() if is_so]


def _unlike_details(block: Any, last_norm: Any, pooling: Any) -> list[str]:
    norms, mlps = [block.norm1, block.norm2, last_norm], [block.mlp]
    if pooling is not None:
        norms.append(pooling.norm)
        mlps.append(pooling.mlp)
    if any(not isinstance(norm, nn.LayerNorm) for norm in norms):
        return ["other norms"]
    unlike = {
        "another attention pooling": pooling is not None
        and (pooling.latent_len != 1 or pooling.pos_embed is not None),
        "other heads in its pooling": pooling is not None
        and pooling.num_heads != block.attn.num_heads,
        "norms of several epsilons": len({norm.eps for norm in norms}) > 1,
        "two activations": len({_activation(mlp.act) for mlp in mlps}) > 1,
        "another width in its pooling": len({mlp.fc1.out_features for mlp in mlps}) > 1,
    }
    return [words for words, is_so in unlike.items() if is_so]


def _activation(module: Any) -> Activation:
    from timm.layers.activations import QuickGELU

    if isinstance(module, QuickGELU):
        return "quick_gelu"
    approximate = getattr(module, "approximate", None)
    if approximate is None and type(module).__name__ == "GELUTanh":
        return "gelu_tanh"
    if approximate is None and type(module).__name__ != "GELU":
        raise ValueError(f"the activation {type(module).__name__} is not supported")
    return "gelu_tanh" if approximate == "tanh" else "gelu"
