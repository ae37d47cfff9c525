"""open_clip's model JSON (`model_cfg`) to and from our configs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from tessera.model.config import (
    CLIP_PIXEL_MEAN,
    CLIP_PIXEL_STD,
    AdapterConfig,
    ClipConfig,
    TextConfig,
    VisionConfig,
    clip_config,
)
from tessera.model.timm_vision import timm_vision_cfg, vision_from_timm

PixelStatistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of red, green and blue, of 1."""

# Their key and our field, with the same meaning.
_VISION_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "width": "width",
    "layers": "layers",
    "head_width": "head_width",
    "mlp_ratio": "mlp_ratio",
    "ls_init_value": "layer_scale",
    "pos_embed_type": "positions",
    "pool_type": "pool",
    "final_ln_after_pool": "pool_before_ln",
}
_TEXT_FIELDS = {
    "context_length": "context_length",
    "vocab_size": "vocab_size",
    "width": "width",
    "layers": "layers",
    "heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "ls_init_value": "layer_scale",
    "pool_type": "pool",
    "eos_id": "eos_id",
    "proj_bias": "projection_bias",
    "hf_tokenizer_name": "tokenizer",
}
_TOP_FIELDS = {
    "embed_dim": "embed_dim",
    "init_logit_scale": "init_logit_scale",
    "init_logit_bias": "init_logit_bias",
}

# Read in another way than field by field.
_VISION_KEYS = {*_VISION_FIELDS, "no_ln_pre", "act_kwargs", "norm_kwargs"}
_TEXT_KEYS = {*_TEXT_FIELDS, "no_causal_mask", "proj_type", "tokenizer_kwargs", "act_kwargs",
              "norm_kwargs"}  # fmt: skip
_TOP_KEYS = {*_TOP_FIELDS, "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "tessera_adapter"}

# Without effect on the model that open_clip builds: it never hands the first to its text tower,
# and reads the second only for `embed_cls`, which is refused.
_IGNORED_TEXT_KEYS = {"final_ln_after_pool", "pad_id"}

_EXACT = {"approximate": "none"}

_TOP_DEFAULTS: Mapping[str, Any] = {"nonscalar_logit_scale": False}

_REASONS = {
    "hf_model_name": "its text tower is a Hugging Face model",
    "multimodal_cfg": "its captioning decoder is not supported",
    "attentional_pool": "attention pooling is not supported",
    "patch_dropout": "patches are masked in the pipeline, before the model; drop this option",
    "embed_cls": "CoCa's class token sees a padding token and not itself, which needs padding",
    "nonscalar_logit_scale": "the scale is a scalar here; drop this option",
    "output_tokens": "the towers return one feature a sequence",
    "tokenizer_mode": "the index holds ids of CLIP's own tokenizer",
    "block_type": "blocks with other norms are not supported",
    "qk_norm": "blocks with other norms are not supported",
    "scaled_cosine_attn": "only scaled dot-product attention is supported",
    "scale_heads": "blocks with head scales are not supported",
    "scale_attn_inner": "blocks with other norms are not supported",
    "scale_attn": "blocks with other norms are not supported",
    "scale_fc": "blocks with other norms are not supported",
}


def from_open_clip(
    name: str,
    raw: Mapping[str, Any],
    pixels: PixelStatistics = (CLIP_PIXEL_MEAN, CLIP_PIXEL_STD),
) -> ClipConfig:
    """Reads open_clip's model JSON.

    An option that we lack passes when it stands at open_clip's default, where it changes
    nothing; at any other value the model is refused.

    Args:
        name: Name for the result and for messages.
        raw: The parsed JSON.
        pixels: What pixels are normalised with.

    Raises:
        ValueError: The model needs something that this package lacks; names every such option.
    """
    import open_clip  # takes seconds

    is_timm = "timm_model_name" in raw["vision_cfg"]
    vision, text, adapter = raw["vision_cfg"], raw["text_cfg"], raw.get("tessera_adapter")
    vision_defaults, text_defaults = (
        {field.name: field.default for field in dataclasses.fields(kind)}
        for kind in (open_clip.CLIPVisionCfg, open_clip.CLIPTextCfg)
    )
    quick_gelu = raw.get("quick_gelu", False)
    problems = [
        *_unsupported("", raw, _TOP_KEYS, _TOP_DEFAULTS),
        *([] if is_timm else _unsupported("vision_cfg.", vision, _VISION_KEYS, vision_defaults)),
        *_unsupported("text_cfg.", text, _TEXT_KEYS | _IGNORED_TEXT_KEYS, text_defaults),
        *([] if is_timm else _wrong_values("vision_cfg.", vision, quick_gelu=quick_gelu)),
        *_wrong_values("text_cfg.", text, quick_gelu=quick_gelu),
    ]
    if problems:
        raise ValueError(f"cannot build {name!r}: {'; '.join(problems)}")
    return ClipConfig(
        name=name,
        vision=vision_from_timm(name, vision, raw["embed_dim"], pixels)
        if is_timm
        else VisionConfig(
            **_renamed(vision, _VISION_FIELDS),
            **_activation_and_norm(vision, quick_gelu=quick_gelu),
            ln_pre=not vision.get("no_ln_pre", False),
            pixel_mean=pixels[0],
            pixel_std=pixels[1],
        ),
        text=TextConfig(
            **_renamed(text, _TEXT_FIELDS),
            **_activation_and_norm(text, quick_gelu=quick_gelu),
            causal=not text.get("no_causal_mask", False),
            projection=text.get("proj_type", "linear") != "none",
            tokenizer_options=tuple((text.get("tokenizer_kwargs") or {}).items()),
        ),
        **_renamed(raw, _TOP_FIELDS),
        custom_text=bool(raw.get("custom_text", False)),
        adapter=_adapter(adapter) if adapter else None,
    )


def _adapter(raw: Mapping[str, Any]) -> AdapterConfig:
    """The adapter; models from before an encoder went by its content name `FOLDER@HASH (how)`."""
    was = re.fullmatch(r"(.*)@([0-9a-f]{16})?( \(.*\))", raw.get("encoder", ""))
    if was:
        folder, content, how = was.groups()
        raw = {**raw, "encoder": (f"sha256:{content}" if content else folder) + how}
    return AdapterConfig(**raw)


def open_clip_config(config: ClipConfig) -> dict[str, Any]:
    """The model as open_clip's model JSON.

    Write it to `<name>.json` and pass that to `open_clip.add_model_config`; or, less
    `custom_text`, pass it to `open_clip.CLIP` or `CustomTextCLIP` as arguments. open_clip cannot
    build a model with an adapter: its config stands under `tessera_adapter`, at which it stops.
    A key without a value is left out: open_clip's tokenizer cannot read `tokenizer_kwargs: null`.

    Raises:
        ValueError: The towers' activations differ in a way that open_clip has no option for.
    """
    vision, text = config.vision, config.text
    if not vision.timm_model and (vision.activation == "quick_gelu") != (
        text.activation == "quick_gelu"
    ):
        raise ValueError(
            f"open_clip has one quick_gelu for both towers, and {config.name!r} has "
            f"{vision.activation} for images and {text.activation} for text"
        )
    content = {
        **_values(config, _TOP_FIELDS),
        # `create_model` takes this key out before it calls the class.
        **({"custom_text": True} if config.custom_text else {}),
        **({"tessera_adapter": dataclasses.asdict(config.adapter)} if config.adapter else {}),
        "quick_gelu": text.activation == "quick_gelu",
    }
    vision_cfg = (
        timm_vision_cfg(vision)
        if vision.timm_model
        else {
            **_values(vision, _VISION_FIELDS),
            **_open_clip_options(vision),
            "no_ln_pre": not vision.ln_pre,
        }
    )
    text_cfg = {
        **_values(text, _TEXT_FIELDS),
        **_open_clip_options(text),
        "no_causal_mask": not text.causal,
        "proj_type": "linear" if text.projection else "none",
        "tokenizer_kwargs": dict(text.tokenizer_options) or None,
    }
    return {
        **_present(content),
        "vision_cfg": _present(vision_cfg),
        "text_cfg": _present(text_cfg),
    }


def preprocess_config(config: ClipConfig) -> dict[str, Any]:
    """What open_clip must know of pixels (`preprocess_cfg` of its `open_clip_config.json`)."""
    return {"mean": list(config.vision.pixel_mean), "std": list(config.vision.pixel_std)}


def pixel_statistics(name: str, tag: str | None = None) -> PixelStatistics:
    """What open_clip normalises pixels with.

    Args:
        name: A model that open_clip lists.
        tag: Published weights of it. Without one, the values that all its published weights
            have in common, or else CLIP's.
    """
    import open_clip  # takes seconds

    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(name)
    configs = [open_clip.get_pretrained_cfg(name, each) for each in tags]
    found = {(config["mean"], config["std"]) for config in configs}
    return found.pop() if len(found) == 1 else (CLIP_PIXEL_MEAN, CLIP_PIXEL_STD)


def _unsupported(
    section: str, raw: Mapping[str, Any], known: set[str], defaults: Mapping[str, Any]
) -> list[str]:
    missing = object()
    return [
        f"{section}{key}={value!r} ({_REASONS.get(key, 'not supported')})"
        for key, value in raw.items()
        if key not in known and value != defaults.get(key, missing)
    ]


def _wrong_values(section: str, raw: Mapping[str, Any], *, quick_gelu: bool) -> list[str]:
    """Values of known keys that no config of ours can hold."""
    causal_first = raw.get("pool_type") == "first" and not raw.get("no_causal_mask", False)
    wrong = {
        "layers": (isinstance(raw.get("layers"), list | tuple), "a ResNet, not a transformer"),
        "image_size": (isinstance(raw.get("image_size"), list | tuple), "only squares"),
        "patch_size": (isinstance(raw.get("patch_size"), list | tuple), "only squares"),
        "pool_type": (
            raw.get("pool_type") == "none" or causal_first,
            "the first token of a causal tower sees only itself"
            if causal_first
            else "one feature an image or caption is needed",
        ),
        "act_kwargs": (
            bool(raw.get("act_kwargs"))
            and (quick_gelu or raw["act_kwargs"] not in ({"approximate": "tanh"}, _EXACT)),
            "only GELU's tanh approximation",
        ),
        "norm_kwargs": (set(raw.get("norm_kwargs") or {}) - {"eps"} != set(), "only eps"),
        "proj_type": (
            raw.get("proj_type", "linear") not in ("linear", "none"),
            "only a linear projection or none",
        ),
    }
    return [
        f"{section}{key}={raw[key]!r} ({reason})"
        for key, (is_wrong, reason) in wrong.items()
        if is_wrong
    ]


def _activation_and_norm(raw: Mapping[str, Any], *, quick_gelu: bool) -> dict[str, Any]:
    tanh = (raw.get("act_kwargs") or {}).get("approximate") == "tanh"
    eps = raw.get("norm_kwargs") or {}
    return {
        "activation": "quick_gelu" if quick_gelu else "gelu_tanh" if tanh else "gelu",
        **({"ln_eps": eps["eps"]} if "eps" in eps else {}),
    }


def _open_clip_options(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    """The reverse of `_activation_and_norm`."""
    is_default = tower.ln_eps == VisionConfig().ln_eps
    return {
        "act_kwargs": {"approximate": "tanh"} if tower.activation == "gelu_tanh" else None,
        "norm_kwargs": None if is_default else {"eps": tower.ln_eps},
    }


def _renamed(raw: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    return {ours: raw[theirs] for theirs, ours in fields.items() if theirs in raw}


def _present(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if value is not None}


def _values(config: object, fields: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for theirs, ours in fields.items()}


def known_to_open_clip(config: ClipConfig) -> bool:
    """Whether open_clip builds exactly this model under this name."""
    import open_clip

    return config.name in open_clip.list_models() and clip_config(config.name) == config
