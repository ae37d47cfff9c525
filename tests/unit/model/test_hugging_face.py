"""Hugging Face's CLIPModel opens what we write, and we open what it writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from tessera.model import Clip, ClipConfig, TextConfig, VisionConfig, build_clip, hugging_face
from tessera.model.config import clip_config
from tessera.model.pretrained import load_pretrained, read_config

transformers = pytest.importorskip("transformers")

CONFIG = ClipConfig(
    name="small",
    embed_dim=16,
    vision=VisionConfig(image_size=24, patch_size=6, width=32, layers=2, head_width=16),
    text=TextConfig(context_length=9, vocab_size=40, width=24, layers=2, heads=2, mlp_ratio=2.1),
)


def changed(vision: dict[str, Any], text: dict[str, Any]) -> ClipConfig:
    return dataclasses.replace(
        CONFIG,
        vision=dataclasses.replace(CONFIG.vision, **vision),
        text=dataclasses.replace(CONFIG.text, **text),
    )


def make(config: ClipConfig) -> Clip:
    torch.manual_seed(0)
    clip = build_clip(config).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return clip


def write(clip: Clip, folder: Path) -> Path:
    folder.mkdir()
    save_file(hugging_face.dump(clip), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(hugging_face.hugging_face_config(clip.config))
    (folder / "config.json").write_text(config, encoding="utf-8")
    for name, text in hugging_face.processor_files(clip.config).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def features(clip: Clip, images: torch.Tensor, texts: torch.Tensor) -> list[torch.Tensor]:
    """Unit features; texts are full rows."""
    side, grid = clip.config.vision.patch_size, clip.config.vision.grid_size
    rows = images.unflatten(3, (grid, side)).unflatten(2, (grid, side))
    patches = rows.permute(0, 2, 4, 3, 5, 1).reshape(-1, 3 * side**2)
    positions = torch.arange(grid**2, dtype=torch.int32).repeat(len(images))
    count = torch.arange(len(images) + 1, dtype=torch.int32)
    with torch.no_grad():
        image = clip.encode_image(patches, positions, count * grid**2)
        text = clip.encode_text(texts.flatten().int(), count * texts.shape[1])
    return [F.normalize(each, dim=-1) for each in (image, text)]


def random_pairs(config: ClipConfig, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    size, text = config.vision.image_size, config.text
    texts = torch.randint(4, text.vocab_size - 2, (3, text.context_length))
    texts[:, -1] = end
    return torch.randn(3, 3, size, size), texts


@pytest.mark.parametrize(
    ("config", "end"),
    [
        (CONFIG, 39),
        (changed({"activation": "quick_gelu"}, {"activation": "gelu_tanh"}), 39),
        (changed({"ln_eps": 0.1}, {"ln_eps": 0.01}), 39),
        (changed({}, {"pool": "eos", "eos_id": 3}), 3),
        (dataclasses.replace(CONFIG, custom_text=True), 39),
    ],
)
def test_transformers_gives_the_same_features(tmp_path: Path, config: ClipConfig, end: int) -> None:
    clip = make(config)
    theirs: Any = transformers.CLIPModel.from_pretrained(write(clip, tmp_path / "small")).eval()
    images, texts = random_pairs(config, end)
    with torch.no_grad():
        wanted = theirs(input_ids=texts, pixel_values=images)
    image, text = features(clip, images, texts)
    torch.testing.assert_close(image, wanted.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(text, wanted.text_embeds, atol=1e-5, rtol=0)
    assert theirs.logit_scale.item() == clip.logit_scale.item()


def test_what_transformers_writes_loads_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    raw = hugging_face.hugging_face_config(CONFIG)
    theirs = transformers.CLIPModel(transformers.CLIPConfig(**raw))
    theirs.save_pretrained(tmp_path / "theirs")
    complete = transformers.CLIPConfig.from_pretrained(tmp_path / "theirs").to_dict()
    config = hugging_face.from_hugging_face("theirs", complete)
    assert config.text.mlp_width == CONFIG.text.mlp_width
    clip = build_clip(config)
    assert load_pretrained(clip, tmp_path / "theirs" / "model.safetensors") == []
    for name, value in hugging_face.dump(clip).items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert set(hugging_face.dump(clip)) == set(theirs.state_dict())


def test_folder_round_trip_keeps_config_and_weights(tmp_path: Path) -> None:
    config = changed({"pixel_mean": (0.5, 0.4, 0.3), "activation": "quick_gelu"}, {"mlp_ratio": 2})
    clip = make(config)
    folder = write(clip, tmp_path / "small")
    found = read_config(folder)
    assert found == config
    other = build_clip(found)
    load_pretrained(other, folder)
    for name, value in clip.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_hidden_width_survives_where_the_quotient_rounds_down() -> None:
    raw = hugging_face.hugging_face_config(CONFIG)
    widths = [hidden for hidden in range(64, 4096) if int(224 * (hidden / 224)) != hidden]
    assert widths, "choose a width at which some quotient rounds down"
    for hidden in widths:
        tower = {**raw["vision_config"], "hidden_size": 224, "intermediate_size": hidden}
        config = hugging_face.from_hugging_face("x", {**raw, "vision_config": tower})
        assert config.vision.mlp_width == hidden


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-bigG-14", "ViT-H-14-378-quickgelu", "ViT-e-14"])
def test_big_models_have_the_names_and_shapes_of_transformers(name: str) -> None:
    raw = hugging_face.hugging_face_config(clip_config(name))
    with torch.device("meta"):
        theirs = transformers.CLIPModel(transformers.CLIPConfig(**raw)).state_dict()
        ours = hugging_face.dump(build_clip(name))
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }
    assert hugging_face.from_hugging_face(name, raw).vision.mlp_width == (
        clip_config(name).vision.mlp_width
    )


def test_processor_cuts_and_tokenises_as_open_clip(tmp_path: Path) -> None:
    config = clip_config("ViT-B-32")
    for name, text in hugging_face.processor_files(config).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path)
    texts = ["a photo of a cat", "Ünïcode & 3 dogs, isn't it?"]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, 400, 3), dtype=torch.uint8, generator=generator)
    image = Image.fromarray(pixels.numpy())
    batch = processor(
        text=texts, images=image, return_tensors="pt", padding="max_length", truncation=True
    )
    ids = open_clip.tokenize(texts)
    for row, wanted in zip(batch["input_ids"], ids, strict=True):
        length = int(wanted.argmax()) + 1
        assert row[:length].tolist() == wanted[:length].tolist()
    transform: Any = open_clip.image_transform(224, is_train=False)
    difference = (batch["pixel_values"][0] - transform(image)).abs()
    # One of 256 levels is 0.015; the libraries round their crops' middle in the same way.
    assert difference.mean() < 0.01


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (changed({"pool": "avg"}, {}), "mean of patches"),
        (changed({"ln_pre": False}, {}), "no layer norm before the first block"),
        (changed({"layer_scale": 0.1}, {}), "layer scale"),
        (changed({}, {"causal": False}), "not causal"),
        (changed({}, {"projection_bias": True}), "projection has a bias"),
        (changed({}, {"pool": "eos"}), "end token has id 2"),
        (dataclasses.replace(CONFIG, init_logit_bias=-10.0), "bias on logits"),
    ],
)
def test_what_clip_model_cannot_be_is_refused(config: ClipConfig, reason: str) -> None:
    with pytest.raises(ValueError, match=f"CLIPModel cannot be 'small'.*{reason}"):
        hugging_face.dump(build_clip(config))


def test_configs_that_say_too_little_are_refused() -> None:
    raw = hugging_face.hugging_face_config(CONFIG)
    with pytest.raises(ValueError, match="'siglip', not a CLIPModel"):
        hugging_face.from_hugging_face("x", {**raw, "model_type": "siglip"})
    with pytest.raises(ValueError, match=r"lacks .*vision_config.image_size"):
        hugging_face.from_hugging_face("x", {**raw, "vision_config": {}})
    odd = {**raw, "text_config": {**raw["text_config"], "hidden_act": "relu"}}
    with pytest.raises(ValueError, match="'relu' is not one of gelu"):
        hugging_face.from_hugging_face("x", odd)
    state = hugging_face.dump(build_clip(CONFIG))
    del state["text_model.encoder.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match="has only"):
        hugging_face.to_open_clip(state)
