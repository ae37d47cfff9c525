"""Sizes of the two towers: open_clip's by its names, and a few small ones of our own."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _require_divisor(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value < 1 or divisor < 1 or value % divisor:
        raise ValueError(
            f"{divisor_name} {divisor} must divide {name} {value}, and both be positive"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """A plain vision transformer with a class token."""

    image_size: int = 224
    """Side of the square input, pixels."""
    patch_size: int = 16
    """Side of a square patch, pixels; must divide `image_size`."""
    width: int = 768
    """Channels of the residual stream."""
    layers: int = 12
    """Number of transformer blocks."""
    head_width: int = 64
    """Channels of one attention head; must divide `width`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`; the product is rounded down."""
    ln_pre: bool = True
    """Whether a layer norm stands between the embedding and the first block."""

    def __post_init__(self) -> None:
        _require_divisor("image_size", self.image_size, "patch_size", self.patch_size)
        _require_divisor("width", self.width, "head_width", self.head_width)
        _require_positive("layers", self.layers)

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.width // self.head_width

    @property
    def num_patches(self) -> int:
        """Patches N of a full image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Values in one patch, 3*p*p."""
        return 3 * self.patch_size**2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """A causal text transformer whose feature is read at the last token (EOT)."""

    context_length: int = 77
    """Most tokens of a caption, SOT and EOT included."""
    vocab_size: int = 49408
    """Number of token ids (CLIP's byte-pair encoding has 49408)."""
    width: int = 512
    """Channels of the residual stream."""
    layers: int = 12
    """Number of transformer blocks."""
    heads: int = 8
    """Attention heads of a block; must divide `width`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`; the product is rounded down."""

    def __post_init__(self) -> None:
        _require_divisor("width", self.width, "heads", self.heads)
        _require_positive("layers", self.layers)
        _require_positive("context_length", self.context_length)
        _require_positive("vocab_size", self.vocab_size)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Both towers and what joins them."""

    name: str
    """Name for logs and checkpoints; open_clip's where open_clip has the model."""
    embed_dim: int
    """Length d of a feature."""
    vision: VisionConfig
    """Image tower."""
    text: TextConfig
    """Text tower."""
    quick_gelu: bool = False
    """Use x*sigmoid(1.702x), as OpenAI's weights were trained with, in place of GELU."""
    init_logit_scale: float = math.log(1 / 0.07)
    """Start of the learned log temperature, natural logarithm."""

    def __post_init__(self) -> None:
        _require_positive("embed_dim", self.embed_dim)


_OWN_CONFIGS = {
    config.name: config
    for config in (
        ClipConfig(
            name="tessera-demo",
            embed_dim=128,
            vision=VisionConfig(image_size=64, patch_size=8, width=128, layers=4),
            text=TextConfig(context_length=32, width=128, layers=3, heads=2),
        ),
        ClipConfig(
            name="tessera-xs-16",
            embed_dim=192,
            vision=VisionConfig(image_size=224, patch_size=16, width=192, layers=6),
            text=TextConfig(context_length=40, width=192, layers=4, heads=3),
        ),
    )
}

_VISION_KEYS = frozenset({"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"})
_TEXT_KEYS = frozenset({"context_length", "vocab_size", "width", "layers", "heads", "mlp_ratio"})
_TOP_KEYS = frozenset({"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"})

_TOP_DEFAULTS: Mapping[str, Any] = {
    "custom_text": False,
    "init_logit_bias": None,
    "nonscalar_logit_scale": False,
}

_REASONS = {
    "timm_model_name": "its image tower is a timm model",
    "hf_model_name": "its text tower is a Hugging Face model",
    "hf_tokenizer_name": "its token ids are not those of CLIP's byte-pair encoding",
    "attentional_pool": "attention pooling is not supported yet",
    "patch_dropout": "patches are masked in the pipeline, before the model; drop this option",
    "pool_type": "only class-token and EOT pooling are supported yet",
    "no_causal_mask": "only causal text is supported yet",
    "ls_init_value": "layer scale is not supported yet",
    "norm_kwargs": "layer norms with other settings are not supported yet",
    "init_logit_bias": "a logit bias (SigLIP) is not supported yet",
    "custom_text": "open_clip's CustomTextCLIP is not supported yet",
    "multimodal_cfg": "CoCa's decoder is not supported",
}


def clip_config(name: str) -> ClipConfig:
    """Looks a model up by name, among our own and then open_clip's.

    Raises:
        ValueError: Nobody knows the name (the message has the nearest ones), or the model
            needs something that this package lacks (the message says what).
    """
    if name in _OWN_CONFIGS:
        return _OWN_CONFIGS[name]
    import open_clip

    known = open_clip.list_models()
    # Asked for first: get_model_config would go to the network for names like hf-hub:...
    if name not in known:
        near = difflib.get_close_matches(name, [*_OWN_CONFIGS, *known], n=5, cutoff=0.4)
        hint = f"; the nearest names are {', '.join(near)}" if near else ""
        raise ValueError(f"unknown model {name!r}{hint}")
    raw = open_clip.get_model_config(name)
    assert raw is not None
    return from_open_clip(name, raw)


def from_open_clip(name: str, raw: Mapping[str, Any]) -> ClipConfig:
    """Reads open_clip's model JSON (`model_cfg`).

    An option that we lack passes when it stands at open_clip's default, where it changes
    nothing; at any other value the model is refused.

    Args:
        name: Name for the result and for messages.
        raw: The parsed JSON.

    Raises:
        ValueError: The model needs something that this package lacks; names every such option.
    """
    import open_clip

    vision, text = dict(raw["vision_cfg"]), dict(raw["text_cfg"])
    no_ln_pre = vision.pop("no_ln_pre", False)
    problems = [
        *_unsupported("", raw, _TOP_KEYS, _TOP_DEFAULTS),
        *_unsupported("vision_cfg.", vision, _VISION_KEYS, _defaults(open_clip.CLIPVisionCfg)),
        *_unsupported("text_cfg.", text, _TEXT_KEYS, _defaults(open_clip.CLIPTextCfg)),
    ]
    problems += _non_scalars(vision)
    if problems:
        raise ValueError(f"cannot build {name!r}: {'; '.join(problems)}")
    return ClipConfig(
        name=name,
        embed_dim=raw["embed_dim"],
        vision=VisionConfig(ln_pre=not no_ln_pre, **_only(vision, _VISION_KEYS)),
        text=TextConfig(**_only(text, _TEXT_KEYS)),
        **_only(raw, {"quick_gelu", "init_logit_scale"}),
    )


def _unsupported(
    section: str, raw: Mapping[str, Any], known: frozenset[str], defaults: Mapping[str, Any]
) -> list[str]:
    missing = object()
    return [
        f"{section}{key}={value!r} ({_REASONS.get(key, 'not supported yet')})"
        for key, value in raw.items()
        if key not in known and value != defaults.get(key, missing)
    ]


def _non_scalars(vision: Mapping[str, Any]) -> list[str]:
    reasons = {
        "layers": "a ResNet; only vision transformers are supported",
        "image_size": "only square images are supported",
        "patch_size": "only square patches are supported",
    }
    return [
        f"vision_cfg.{key}={vision[key]!r} ({reason})"
        for key, reason in reasons.items()
        if isinstance(vision.get(key), list | tuple)
    ]


def _defaults(config_class: Any) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(config_class)}


def _only(raw: Mapping[str, Any], keys: set[str] | frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key in keys}
