"""Weights and config to and from the layout of Hugging Face's `CLIPModel`.

`CLIPModel` holds what OpenAI published: class-token pooling, a causal text tower read at the end
token, projections without bias, a layer norm before the first block. A model that is anything else
is refused, with every reason. Both ways go through open_clip's names, tensor for tensor; only the
joint projection of queries, keys and values is three tensors there, and projections are transposed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, cat

from tessera.model import open_clip_weights
from tessera.model.clip import Clip
from tessera.model.config import (
    CLIP_PIXEL_MEAN,
    CLIP_PIXEL_STD,
    Activation,
    ClipConfig,
    TextConfig,
    VisionConfig,
)
from tessera.model.open_clip_config import PixelStatistics

_ACTIVATIONS: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
}

# open_clip's and theirs; whole names first, then prefixes, then parts of a block.
_TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_WHOLE = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    **_TRANSPOSED,
}
_PREFIXES = {
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
}
_PARTS = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
_JOINT = ".attn.in_proj_"
_SPLIT = (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.")


def dump(clip: Clip) -> dict[str, Tensor]:
    """The model's weights under the names of `CLIPModel`.

    Raises:
        ValueError: `CLIPModel` cannot be this model; says why.
    """
    hugging_face_config(clip.config)
    result = {}
    weights = open_clip_weights.with_text_names(open_clip_weights.dump(clip), custom_text=False)
    for name, value in weights.items():
        if _JOINT in name:
            for part, piece in zip(_SPLIT, value.chunk(3), strict=True):
                result[_their_name(name).replace(_JOINT, part)] = piece.contiguous()
        else:
            value = value.T.contiguous() if name in _TRANSPOSED else value
            result[_their_name(name)] = value
    return result


def to_open_clip(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `CLIPModel`'s state dict under open_clip's names, as `open_clip_weights.load` reads it.

    Tensors that `CLIPModel` does not have keep their names, so that `load` names them.

    Raises:
        ValueError: Of a query, key and value projection only some are there.
    """
    whole = {theirs: ours for ours, theirs in _WHOLE.items()}
    joint: dict[str, dict[str, Tensor]] = {}
    result = {}
    for name, value in state_dict.items():
        part = next((part for part in _SPLIT if part in name), None)
        if name.endswith(".embeddings.position_ids"):
            continue  # a counter 0, 1, 2, ... that older versions of transformers stored
        if part:
            joint.setdefault(_open_clip_name(name.replace(part, _JOINT)), {})[part] = value
        elif name in whole:
            ours = whole[name]
            result[ours] = value.T.contiguous() if ours in _TRANSPOSED else value
        else:
            result[_open_clip_name(name)] = value
    for name, parts in joint.items():
        if set(parts) != set(_SPLIT):
            raise ValueError(f"the state dict has only {', '.join(parts)} of {name}")
        result[name] = cat([parts[part] for part in _SPLIT])
    return result


def hugging_face_config(config: ClipConfig) -> dict[str, Any]:
    """The model as the `config.json` of a `CLIPModel`.

    Raises:
        ValueError: `CLIPModel` cannot be this model; says why.
    """
    problems = _inexpressible(config)
    if problems:
        raise ValueError(
            f"Hugging Face's CLIPModel cannot be {config.name!r}: {'; '.join(problems)}; "
            "export it for open_clip"
        )
    vision, text = config.vision, config.text
    clip_bpe = text.uses_clip_bpe and text.vocab_size == TextConfig().vocab_size
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.init_logit_scale,
        "vision_config": {
            **_tower(vision),
            "model_type": "clip_vision_model",
            "projection_dim": config.embed_dim,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        "text_config": {
            **_tower(text),
            "model_type": "clip_text_model",
            "projection_dim": config.embed_dim,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            # transformers reads the largest id where the end token is said to be 2.
            "eos_token_id": _eos_id(text) if text.pool == "eos" or clip_bpe else 2,
            "bos_token_id": text.vocab_size - 2 if clip_bpe else 0,
            "pad_token_id": text.vocab_size - 1 if clip_bpe else 1,
        },
    }


def from_hugging_face(
    name: str,
    raw: Mapping[str, Any],
    pixels: PixelStatistics = (CLIP_PIXEL_MEAN, CLIP_PIXEL_STD),
) -> ClipConfig:
    """Reads the `config.json` of a `CLIPModel`.

    Args:
        name: Name for the result.
        raw: The parsed JSON, with every key that `hugging_face_config` writes but the special
            tokens; published files that lean on the defaults of transformers are completed by
            `transformers.CLIPConfig.from_pretrained(...).to_dict()`.
        pixels: What pixels are normalised with.

    Raises:
        ValueError: It is no `CLIPModel`, a key is missing, or it has an activation of its own.
    """
    if raw.get("model_type") != "clip":
        raise ValueError(f"{name!r} is of type {raw.get('model_type')!r}, not a CLIPModel ('clip')")
    vision, text = raw["vision_config"], raw["text_config"]
    missing = [
        f"{section}.{key}"
        for section, tower, keys in (
            ("vision_config", vision, (*_TOWER_KEYS, "image_size", "patch_size")),
            ("text_config", text, (*_TOWER_KEYS, "vocab_size", "max_position_embeddings")),
        )
        for key in keys
        if key not in tower
    ]
    if missing:
        raise ValueError(
            f"the config of {name!r} lacks {', '.join(missing)}: complete it with "
            "transformers.CLIPConfig.from_pretrained(...).to_dict()"
        )
    end = text.get("eos_token_id", 2)
    return ClipConfig(
        name=name,
        embed_dim=raw["projection_dim"],
        init_logit_scale=raw.get("logit_scale_init_value", math.log(1 / 0.07)),
        vision=VisionConfig(
            **_from_tower(vision),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            head_width=vision["hidden_size"] // vision["num_attention_heads"],
            pixel_mean=pixels[0],
            pixel_std=pixels[1],
        ),
        text=TextConfig(
            **_from_tower(text),
            heads=text["num_attention_heads"],
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            **({} if end in (2, text["vocab_size"] - 1) else {"pool": "eos", "eos_id": end}),
        ),
    )


def processor_files(config: ClipConfig) -> dict[str, str]:
    """Files that `CLIPProcessor.from_pretrained` reads beside the model, by name.

    The image half does what open_clip does for evaluation: the short side to the image size,
    bicubic, then a square from the middle. The text half is CLIP's byte-pair encoding, and is
    left out for a model of other token ids.
    """
    vision, size = config.vision, config.vision.image_size
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(vision.pixel_mean),
            "image_std": list(vision.pixel_std),
        }
    }
    texts = {}
    if config.text.uses_clip_bpe and config.text.vocab_size == TextConfig().vocab_size:
        from open_clip.tokenizer import SimpleTokenizer

        bpe = SimpleTokenizer()
        start, end = "<|startoftext|>", "<|endoftext|>"
        specials = {bpe.sot_token_id: start, bpe.eot_token_id: end}
        files["vocab.json"] = {specials.get(i, token): i for token, i in bpe.encoder.items()}
        files["tokenizer_config.json"] = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": config.text.context_length,
            "bos_token": start,
            "eos_token": end,
            "unk_token": end,
            "pad_token": end,
        }
        pairs = sorted(bpe.bpe_ranks, key=bpe.bpe_ranks.__getitem__)
        merges = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
        texts["merges.txt"] = "\n".join(merges) + "\n"
    return {name: json.dumps(content, indent=1) for name, content in files.items()} | texts


def _inexpressible(config: ClipConfig) -> list[str]:
    vision, text = config.vision, config.text
    reasons = {
        "it has no layer norm before the first block of its image tower": not vision.ln_pre,
        "its image feature is a mean of patches": vision.pool != "tok",
        "its blocks have layer scale": vision.layer_scale is not None
        or text.layer_scale is not None,
        "its text tower is not causal": not text.causal,
        f"its text feature is read by pool {text.pool!r}": text.pool not in ("argmax", "eos"),
        "its end token has id 2, which transformers reads as 'the largest id'": text.pool == "eos"
        and text.eos_id == 2,
        "its text tower has no projection": not text.projection,
        "its text projection has a bias": text.projection_bias,
        "it has a bias on logits": config.init_logit_bias is not None,
        "its text side reads sentence embeddings": config.adapter is not None,
    }
    return [reason for reason, applies in reasons.items() if applies]


def _eos_id(text: TextConfig) -> int:
    return text.eos_id if text.pool == "eos" else text.vocab_size - 1


_TOWER_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)


def _tower(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    values = (
        tower.width,
        tower.mlp_width,
        tower.layers,
        tower.heads,
        _ACTIVATIONS[tower.activation],
        tower.ln_eps,
    )
    return dict(zip(_TOWER_KEYS, values, strict=True))


def _from_tower(raw: Mapping[str, Any]) -> dict[str, Any]:
    activations = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
    if raw["hidden_act"] not in activations:
        raise ValueError(f"hidden_act {raw['hidden_act']!r} is not one of {', '.join(activations)}")
    width, hidden = raw["hidden_size"], raw["intermediate_size"]
    ratio = hidden / width
    return {
        "width": width,
        "layers": raw["num_hidden_layers"],
        # The product is rounded down, and a quotient may lie a hair too low.
        "mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
        "activation": activations[raw["hidden_act"]],
        "ln_eps": raw["layer_norm_eps"],
    }


def _their_name(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    return _replaced(name, _PREFIXES.items(), _PARTS.items())


def _open_clip_name(name: str) -> str:
    return _replaced(
        name,
        ((theirs, ours) for ours, theirs in _PREFIXES.items()),
        ((theirs, ours) for ours, theirs in _PARTS.items()),
    )


def _replaced(name: str, prefixes: Any, parts: Any) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in parts:
        name = name.replace(old, new)
    return name
