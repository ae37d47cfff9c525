"""Weights from files, folders and tags, position tables of other sizes, and what is refused."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from safetensors.torch import save_file
from torch import Tensor

from tessera.model import Clip, ClipConfig, TextConfig, VisionConfig, build_clip, hugging_face
from tessera.model.open_clip_config import open_clip_config, preprocess_config
from tessera.model.open_clip_weights import dump
from tessera.model.positions import resize_image_positions
from tessera.model.pretrained import (
    load_pretrained,
    read_config,
    read_state_dict,
    require_usual_resize,
)

CONFIG = ClipConfig(
    name="small",
    embed_dim=16,
    vision=VisionConfig(image_size=24, patch_size=6, width=32, layers=2, head_width=16),
    text=TextConfig(context_length=9, vocab_size=40, width=24, layers=2, heads=2),
)


def changed(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> ClipConfig:
    """The small model with other values in its towers."""
    return dataclasses.replace(
        CONFIG,
        vision=dataclasses.replace(CONFIG.vision, **(vision or {})),
        text=dataclasses.replace(CONFIG.text, **(text or {})),
    )


def make(config: ClipConfig = CONFIG, seed: int = 0) -> Clip:
    torch.manual_seed(seed)
    return build_clip(config)


def write_folder(clip: Clip, folder: Path) -> Path:
    folder.mkdir()
    save_file(dump(clip), folder / "open_clip_model.safetensors")
    content = {
        "model_cfg": open_clip_config(clip.config),
        "preprocess_cfg": preprocess_config(clip.config),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def assert_same(left: Clip, right: Clip) -> None:
    for (name, a), b in zip(left.state_dict().items(), right.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    """As open_clip's trainer stores a compiled model under DistributedDataParallel."""
    named = {f"module._orig_mod.{name}": value for name, value in state.items()}
    return {"epoch": 3, "name": "run", "state_dict": named, "optimizer": {"state": {}}}


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        (".safetensors", lambda state: state),
        (".bin", lambda state: state),
        (".pt", wrapped),
        (".pt", lambda state: {**state, "logit_scale": state["logit_scale"].reshape(1)}),
        (".pt", lambda state: {**state, "input_resolution": torch.tensor(24)}),
    ],
)
def test_files_of_open_clip_load(tmp_path: Path, suffix: str, form: Any) -> None:
    source, target = make(), make(seed=1)
    path = tmp_path / f"weights{suffix}"
    content = form(dump(source))
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    assert load_pretrained(target, path) == []
    assert_same(target, source)


@pytest.mark.parametrize("custom_text", [False, True])
def test_both_names_of_the_text_tower_load(tmp_path: Path, custom_text: bool) -> None:
    source = make(dataclasses.replace(CONFIG, custom_text=not custom_text))
    target = make(dataclasses.replace(CONFIG, custom_text=custom_text), seed=1)
    save_file(dump(source), tmp_path / "weights.safetensors")
    load_pretrained(target, tmp_path / "weights.safetensors")
    assert_same(target, source)


def test_folder_loads_and_names_its_config(tmp_path: Path) -> None:
    config = changed({"pixel_mean": (0.5, 0.5, 0.5), "pool": "avg"}, {"causal": False})
    source = make(config)
    folder = write_folder(source, tmp_path / "small")
    assert read_config(folder) == config
    target = make(config, seed=1)
    load_pretrained(target, folder)
    assert_same(target, source)


def test_open_clip_folder_with_a_bin_file_loads(tmp_path: Path) -> None:
    source, target = make(), make(seed=1)
    folder = write_folder(source, tmp_path / "small")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(dump(source), folder / "open_clip_pytorch_model.bin")
    assert load_pretrained(target, folder) == []
    assert_same(target, source)


def write_shards(clip: Clip, folder: Path, *, suffix: str) -> Path:
    """As transformers stores a large `CLIPModel`: tensors in two files, and an index of them."""
    folder.mkdir()
    config = json.dumps(hugging_face.hugging_face_config(clip.config))
    (folder / "config.json").write_text(config, encoding="utf-8")
    state = hugging_face.dump(clip)
    stem = "pytorch_model" if suffix == ".bin" else "model"
    places = {name: f"{stem}-0000{1 + number % 2}-of-00002{suffix}" for number, name in
              enumerate(state)}  # fmt: skip
    for file in set(places.values()):
        part = {name: state[name] for name in state if places[name] == file}
        torch.save(part, folder / file) if suffix == ".bin" else save_file(part, folder / file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / f"{stem}{suffix}.index.json").write_text(index, encoding="utf-8")
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_hugging_face_shards_load(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = make(), make(seed=1)
    folder = write_shards(source, tmp_path / "theirs", suffix=suffix)
    with caplog.at_level("INFO"):
        assert load_pretrained(target, folder) == []
    assert_same(target, source)
    number = len(dump(source))
    assert f"loaded {number} of {number} tensors from {folder}" in caplog.text


def test_hugging_face_folder_with_one_bin_file_loads(tmp_path: Path) -> None:
    source, target = make(), make(seed=1)
    folder = write_shards(source, tmp_path / "theirs", suffix=".bin")
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    torch.save(hugging_face.dump(source), folder / "pytorch_model.bin")
    assert load_pretrained(target, folder) == []
    assert_same(target, source)


def test_missing_shards_and_damaged_indexes_are_named(tmp_path: Path) -> None:
    folder = write_shards(make(), tmp_path / "theirs", suffix=".bin")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks pytorch_model-00002-of-00002\.bin, 1 of"):
        load_pretrained(make(), folder)
    index = folder / "pytorch_model.bin.index.json"
    for content in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../x.bin"}}', "no"):
        index.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="damaged"):
            load_pretrained(make(), folder)


def test_folder_with_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    folder = write_shards(make(), tmp_path / "theirs", suffix=".bin")
    torch.save({"a": argparse.Namespace(b=1)}, folder / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_pretrained(make(), folder)


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        ({"pixel_mean": (0.5, 0.5, 0.5)}, {}, "vision.pixel_mean"),
        ({"head_width": 8}, {}, "vision.head_width is 8 there, 16 here"),
        ({"activation": "gelu_tanh"}, {}, "vision.activation is 'gelu_tanh' there, 'gelu' here"),
        ({}, {"causal": False}, "text.causal is False there"),
        ({}, {"heads": 3}, "text.heads is 3 there"),
    ],
)
def test_what_no_shape_shows_is_compared(
    tmp_path: Path, vision: dict[str, Any], text: dict[str, Any], message: str
) -> None:
    folder = write_folder(make(changed(vision, text)), tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        load_pretrained(make(), folder)


@pytest.mark.parametrize("size", [12, 48])
@pytest.mark.parametrize("context", [5, 20])
def test_position_tables_resize_as_open_clips(tmp_path: Path, size: int, context: int) -> None:
    source = make()
    target = make(changed({"image_size": size}, {"context_length": context}), seed=1)
    path = tmp_path / "weights.safetensors"
    save_file(dump(source), path)
    theirs = open_clip.CLIP(**copy.deepcopy(open_clip_config(target.config)))
    state = dump(source)
    resize_pos_embed(state, theirs)
    resize_text_pos_embed(state, theirs)
    notes = load_pretrained(target, path)
    assert len(notes) == 2
    assert f"visual.positional_embedding was resized from 17 to {(size // 6) ** 2 + 1}" in notes[0]
    assert target.text is not None
    image, text = target.image.positional_embedding, target.text.positional_embedding
    torch.testing.assert_close(image.data, state["visual.positional_embedding"])
    torch.testing.assert_close(text.data, state["positional_embedding"])
    assert torch.equal(image[0], source.image.positional_embedding[0])
    with pytest.raises(ValueError, match=r"positional_embedding is \[17, 32\]"):
        load_pretrained(target, path, resize=False)


def test_resized_linear_ramp_stays_a_ramp() -> None:
    ramp = torch.arange(8.0).repeat(8, 1).flatten()[:, None]
    table = torch.cat([torch.full((1, 1), -5.0), ramp])
    resized = resize_image_positions(table, 256)
    assert resized[0].item() == -5.0
    grid = resized[1:].view(16, 16)
    torch.testing.assert_close(grid, grid[:1].expand(16, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(grid[0, 4:12].diff(), torch.full((7,), 0.5), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="square grid"):
        resize_image_positions(table[:-1], 256)


def test_missing_bias_on_logits_keeps_its_start_and_is_told(tmp_path: Path) -> None:
    save_file(dump(make()), tmp_path / "weights.safetensors")
    target = make(dataclasses.replace(CONFIG, init_logit_bias=-10.0))
    assert load_pretrained(target, tmp_path / "weights.safetensors") == [
        "the source has no logit_bias: it starts at -10.0"
    ]
    assert target.logit_bias is not None
    assert target.logit_bias.item() == -10.0


def test_pickles_that_run_code_and_damaged_files_are_refused(tmp_path: Path) -> None:
    code = tmp_path / "code.pt"
    torch.save({"state_dict": argparse.Namespace(a=1)}, code)
    script = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(script))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no weights")
    for path in (code, script, damaged):
        with pytest.raises(ValueError, match="damaged, or holds more than tensors"):
            read_state_dict(path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(tmp_path / "list.pt")


def test_sources_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none of open_clip_model.safetensors, .* is"):
        load_pretrained(make(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither open_clip_config.json nor"):
        read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'openai' is neither .* it has no tags"):
        load_pretrained(make(), "openai")


def test_tag_is_taken_from_open_clip_and_its_activation_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = open_clip_config(CONFIG)
    (tmp_path / "tessera-tagged.json").write_text(json.dumps(small), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "tessera-tagged.json")
    weights = tmp_path / "weights.safetensors"
    source = make()
    save_file(dump(source), weights)
    pixels = {"mean": CONFIG.vision.pixel_mean, "std": CONFIG.vision.pixel_std}
    tags = {
        "plain": {"file": str(weights), **pixels},
        "quick": {"file": str(weights), "quick_gelu": True, **pixels},
        "gone": {"file": str(tmp_path / "gone.pt"), **pixels, "url": "", "hf_hub": ""},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tessera-tagged", tags)
    target = make(dataclasses.replace(CONFIG, name="tessera-tagged"), seed=1)
    load_pretrained(target, "plain")
    assert_same(target, source)
    with pytest.raises(ValueError, match=r"vision.activation is 'quick_gelu' there"):
        load_pretrained(target, "quick")
    with pytest.raises(FileNotFoundError, match="gone"):
        load_pretrained(target, "gone")


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("open_clip_config.json", {"preprocess_cfg": {"interpolation": "bilinear"}}, "bilinear"),
        ("open_clip_config.json", {"preprocess_cfg": {"resize_mode": "squash"}}, "squash"),
        ("preprocessor_config.json", {"resample": 2, "size": {"shortest_edge": 24}}, "resample"),
        ("preprocessor_config.json", {"size": {"height": 24, "width": 24}}, "height"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop"),
        ("open_clip_config.json", {"preprocess_cfg": []}, None),
        ("open_clip_config.json", {"model_cfg": {}}, None),
        ("preprocessor_config.json", {"resample": 3, "size": 24, "do_center_crop": True}, None),
    ],
)
def test_other_ways_to_resize_are_refused(
    tmp_path: Path, file: str, content: dict[str, Any], wanted: str | None
) -> None:
    (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    if wanted is None:
        require_usual_resize(tmp_path)
        return
    with pytest.raises(ValueError, match=f"wants its pictures with .*{wanted}"):
        require_usual_resize(tmp_path)


def test_our_own_folders_are_resized_as_usual(tmp_path: Path) -> None:
    require_usual_resize(write_folder(make(), tmp_path / "ours"))
