"""Which names are understood, and what is said of the others."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import open_clip
import pytest

from tessera.model import ClipConfig, TextConfig, VisionConfig
from tessera.model.config import clip_config
from tessera.model.open_clip_config import from_open_clip, open_clip_config


def is_plain(name: str) -> bool:
    """Whether open_clip's model is made of its own transformers, without a decoder."""
    raw = open_clip.get_model_config(name)
    assert raw is not None
    foreign = "timm_model_name" in raw["vision_cfg"] or "hf_model_name" in raw["text_cfg"]
    return name.startswith("ViT-") and not foreign and "multimodal_cfg" not in raw


@pytest.mark.parametrize(
    ("name", "vision", "text", "quick_gelu"),
    [
        ("ViT-B-16", (224, 16, 768, 12, 12), (77, 512, 8), False),
        ("ViT-S-32-alt", (224, 32, 384, 12, 6), (77, 256, 4), False),
        ("ViT-B-32-quickgelu", (224, 32, 768, 12, 12), (77, 512, 8), True),
        ("ViT-bigG-14", (224, 14, 1664, 48, 16), (77, 1280, 20), False),
        ("tessera-demo", (64, 8, 128, 4, 2), (32, 128, 2), False),
        ("tessera-xs-16", (224, 16, 192, 6, 3), (40, 192, 3), False),
    ],
)
def test_known_names(name: str, vision: tuple, text: tuple, quick_gelu: bool) -> None:
    config = clip_config(name)
    v, t = config.vision, config.text
    assert (v.image_size, v.patch_size, v.width, v.layers, v.heads) == vision
    assert (t.context_length, t.width, t.heads) == text
    assert v.activation == t.activation == ("quick_gelu" if quick_gelu else "gelu")


PLAIN = [name for name in open_clip.list_models() if is_plain(name)]


def test_every_plain_vit_of_open_clip_is_understood() -> None:
    assert len(PLAIN) >= 45
    assert {"ViT-M-16-alt", "ViT-bigG-14-CLIPA-336", "ViT-L-14-worldwide", "ViT-e-14"} <= set(PLAIN)
    for name in PLAIN:
        assert clip_config(name).name == name


@pytest.mark.parametrize("name", ["tessera-demo", "tessera-xs-16", *PLAIN])
def test_config_survives_open_clips_json(name: str) -> None:
    config = clip_config(name)
    pixels = config.vision.pixel_mean, config.vision.pixel_std
    raw = json.loads(json.dumps(open_clip_config(config)))
    assert from_open_clip(name, raw, pixels) == config


def test_options_of_clipa_and_worldwide_models() -> None:
    clipa = clip_config("ViT-L-14-CLIPA")
    assert (clipa.vision.pool, clipa.vision.pool_before_ln, clipa.vision.ln_pre) == (
        "avg",
        True,
        False,
    )
    assert clipa.vision.pixel_mean == open_clip.constants.IMAGENET_MEAN
    assert (clipa.text.causal, clipa.text.pool) == (False, "last")
    assert clipa.text.tokenizer == "bert-base-uncased"
    worldwide = clip_config("ViT-L-14-worldwide-quickgelu")
    assert (worldwide.text.pool, worldwide.text.eos_id) == ("eos", 1)
    assert worldwide.text.activation == worldwide.vision.activation == "quick_gelu"
    assert clip_config("ViT-M-16-alt").vision.layer_scale == 1e-4


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'ViT-B16'.*ViT-B-16"):
        clip_config("ViT-B16")
    with pytest.raises(ValueError, match="tessera-demo"):
        clip_config("tesera-demo")
    with pytest.raises(ValueError, match="unknown model 'hf-hub:someone/model'"):
        clip_config("hf-hub:someone/model")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ViTamin-S", "timm"),
        ("xlm-roberta-base-ViT-B-32", "Hugging Face"),
        ("RN50", "ResNet"),
        ("coca_ViT-B-32", "attentional_pool=True"),
    ],
)
def test_models_we_lack_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"cannot build '{name}'.*{reason}"):
        clip_config(name)


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("vision_cfg", "patch_dropout", 0.5),
        ("vision_cfg", "qk_norm", True),
        ("vision_cfg", "image_size", [224, 112]),
        ("vision_cfg", "pool_type", "none"),
        ("vision_cfg", "act_kwargs", {"approximate": "other"}),
        ("vision_cfg", "norm_kwargs", {"eps": 1e-6, "elementwise_affine": False}),
        ("text_cfg", "pool_type", "first"),
        ("text_cfg", "embed_cls", True),
        ("text_cfg", "proj_type", "mlp"),
        ("text_cfg", "something_new", 1),
    ],
)
def test_options_pass_at_open_clips_default_alone(section: str, option: str, value: Any) -> None:
    raw = open_clip_config(clip_config("tessera-demo"))
    defaults = {"patch_dropout": 0.0, "qk_norm": False, "embed_cls": False, "norm_kwargs": None}
    if option in defaults:
        neutral = {**raw, section: {**raw[section], option: defaults[option]}}
        assert from_open_clip("tessera-demo", neutral) == clip_config("tessera-demo")
    with pytest.raises(ValueError, match=f"{section}.{option}="):
        from_open_clip("mine", {**raw, section: {**raw[section], option: value}})


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_size 16 must divide image_size 100"):
        VisionConfig(image_size=100)
    with pytest.raises(ValueError, match="heads 7 must divide width 512"):
        TextConfig(heads=7)
    with pytest.raises(ValueError, match="embed_dim must be at least 1"):
        ClipConfig(name="x", embed_dim=0, vision=VisionConfig(), text=TextConfig())
    with pytest.raises(ValueError, match="pool must be one of tok, avg, map, got 'max'"):
        VisionConfig(pool="max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="first token sees only itself"):
        TextConfig(pool="first")
    with pytest.raises(ValueError, match="text width 512 must equal embed_dim 64"):
        ClipConfig(name="x", embed_dim=64, vision=VisionConfig(), text=TextConfig(projection=False))


def test_one_quick_gelu_for_both_towers_in_open_clips_json() -> None:
    config = dataclasses.replace(
        clip_config("tessera-demo"), text=TextConfig(activation="quick_gelu")
    )
    with pytest.raises(ValueError, match="one quick_gelu for both towers"):
        open_clip_config(config)
