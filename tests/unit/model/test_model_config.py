"""Which names are understood, and what is said of the others."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest

from model import ClipConfig, TextConfig, VisionConfig
from model.config import clip_config, from_open_clip
from model.open_clip_weights import open_clip_config


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
    assert config.quick_gelu is quick_gelu


def test_plain_vits_of_open_clip_are_all_understood() -> None:
    special = ("SigLIP", "CLIPA", "worldwide", "M-16-alt")
    for name in open_clip.list_models():
        if name.startswith("ViT-") and not any(word in name for word in special):
            assert clip_config(name).name == name


@pytest.mark.parametrize("name", ["tessera-demo", "tessera-xs-16", "ViT-g-14"])
def test_config_survives_open_clips_json(name: str) -> None:
    config = clip_config(name)
    assert from_open_clip(name, open_clip_config(config)) == config


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
        ("ViT-B-16-SigLIP", "timm"),
        ("xlm-roberta-base-ViT-B-32", "Hugging Face"),
        ("RN50", "ResNet"),
        ("ViT-M-16-alt", "layer scale"),
        ("ViT-L-14-CLIPA", "pool_type='avg'"),
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
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "something_new", 1),
    ],
)
def test_options_pass_at_open_clips_default_alone(section: str, option: str, value: Any) -> None:
    raw = open_clip_config(clip_config("tessera-demo"))
    defaults = {"patch_dropout": 0.0, "qk_norm": False, "pool_type": "argmax"}
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
