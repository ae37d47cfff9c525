"""tools/export.py writes what open_clip and transformers open with the same features."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tessera.model import Clip, build_clip, open_clip_weights
from tessera.model.config import ClipConfig, clip_config
from tessera.model.open_clip_config import open_clip_config, preprocess_config
from tessera.tools import export as tool

ROOT = Path(__file__).resolve().parents[2]


def checkpoint_of(config: ClipConfig, folder: Path) -> tuple[Path, Clip]:
    """A checkpoint folder as a run leaves it, and its model."""
    torch.manual_seed(0)
    clip = build_clip(config).eval()
    folder.mkdir()
    save_file(open_clip_weights.dump(clip), folder / "open_clip_model.safetensors")
    for name, content in {
        "open_clip_config.json": {
            "model_cfg": open_clip_config(config),
            "preprocess_cfg": preprocess_config(config),
        },
        "state.json": {"config": {"model": config.name}},
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder, clip


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/export.py", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def caption_features(clip: Clip, ids: Tensor) -> Tensor:
    """Our features of padded ids [B, C], not normalised."""
    lengths = (ids.argmax(dim=1) + 1).tolist()
    tokens = torch.cat([row[:n] for row, n in zip(ids, lengths, strict=True)])
    with torch.no_grad():
        return clip.encode_text(tokens.int(), torch.tensor([0, *lengths]).cumsum(0).int())


def test_folder_opens_in_open_clip(tmp_path: Path) -> None:
    vision = dataclasses.replace(clip_config("tessera-demo").vision, pixel_mean=(0.5, 0.4, 0.3))
    config = dataclasses.replace(clip_config("tessera-demo"), vision=vision)
    checkpoint, clip = checkpoint_of(config, tmp_path / "step_000000010")
    out = tmp_path / "deep" / "exported"
    done = run(checkpoint, "--format", "open_clip", "--out", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["model"] == "tessera-demo"
    assert result["max_difference"] <= 1e-5
    theirs: Any
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{out}")
    ids = open_clip.tokenize(["a cat", "two dogs on a hill"], context_length=32)
    with torch.no_grad():
        wanted = theirs.eval().encode_text(ids)
    torch.testing.assert_close(caption_features(clip, ids), wanted, atol=1e-5, rtol=1e-5)
    assert "(0.5, 0.4, 0.3)" in str(transform).replace("[", "(").replace("]", ")")
    assert [path.name for path in out.parent.iterdir()] == ["exported"]


def clip_benchmarks_loader(name: str) -> tuple[Any, Any, Any]:
    """The calls of `clip_benchmark.models.open_clip.load_open_clip`, 1.6.2, in their order."""
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained="", cache_dir=None)
    return model.to("cpu").eval(), transform, open_clip.get_tokenizer(name)


@pytest.mark.parametrize("what", ["a checkpoint", "an export"])
def test_open_clips_usual_lines_and_clip_benchmark_open_it(what: str, tmp_path: Path) -> None:
    config = clip_config("tessera-demo")
    folder, clip = checkpoint_of(config, tmp_path / "step_000000010")
    if what == "an export":
        out = tmp_path / "exported"
        tool.export(tool.Arguments(checkpoint=folder, format="open_clip", out=out))
        folder = out

    model, transform, tokenizer = clip_benchmarks_loader(f"local-dir:{folder}")
    ids = tokenizer(["a cat", "two dogs on a hill " * 20])
    picture = transform(Image.new("RGB", (80, 60), "red"))

    assert ids.shape == (2, 32)
    assert picture.shape == (3, 64, 64)
    with torch.no_grad():
        wanted = model.encode_text(ids)
        assert model.encode_image(picture[None]).shape == (1, 128)
    torch.testing.assert_close(caption_features(clip, ids), wanted, atol=1e-5, rtol=1e-5)
    content = (folder / "open_clip_config.json").read_text("utf-8")
    assert "null" not in content


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    words: dict[str, Any] = {"format": "open_clip", "out": tmp_path / "exported"}
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        tool.Arguments(checkpoint=tmp_path / "run", **words)
    for step in (10, 20):
        newest, _ = checkpoint_of(clip_config("tessera-demo"), checkpoints / f"step_{step:09d}")

    result = tool.export(tool.Arguments(checkpoint=tmp_path / "run", **words))

    assert result["checkpoint"] == str(newest)
    with pytest.raises(ValueError, match="holds the checkpoint"):
        tool.Arguments(
            checkpoint=tmp_path / "run", format="open_clip", out=tmp_path / "run", overwrite=True
        )


def test_weights_between_two_models_are_wise_fts(tmp_path: Path) -> None:
    config = clip_config("tessera-demo")
    start, first = checkpoint_of(config, tmp_path / "start")
    tuned, second = checkpoint_of(config, tmp_path / "tuned")
    with torch.no_grad():
        for weight in second.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    save_file(open_clip_weights.dump(second), tuned / "open_clip_model.safetensors")
    words: dict[str, Any] = {"checkpoint": start, "format": "open_clip", "average": tuned}
    for alpha in (0.0, 0.25, 1.0):
        out = tmp_path / f"alpha {alpha}"
        tool.export(tool.Arguments(**words, alpha=alpha, out=out))
        written = load_file(out / "open_clip_model.safetensors")
        theirs = open_clip_weights.dump(second)
        for name, weight in open_clip_weights.dump(first).items():
            wanted = weight + alpha * (theirs[name] - weight)
            torch.testing.assert_close(written[name], wanted, atol=1e-6, rtol=1e-6)
    for alpha, other, complaint in (
        (1.5, tuned, "alpha is a share"),
        (0.5, checkpoint_of(clip_config("ViT-S-32-alt"), tmp_path / "s")[0], "one architecture"),
    ):
        with pytest.raises(ValueError, match=complaint):
            tool.export(
                tool.Arguments(**{**words, "average": other}, alpha=alpha, out=tmp_path / "refused")
            )
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("kind", ["hugging-face", "open_clip"])
def test_folders_with_bin_files_are_exported(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    checkpoint, _ = checkpoint_of(clip_config("tessera-demo"), tmp_path / "step_000000010")
    theirs = tmp_path / "theirs"
    words: dict[str, Any] = {"checkpoint": checkpoint, "format": kind, "out": theirs}
    tool.export(tool.Arguments(**words))
    (weights,) = theirs.glob("*.safetensors")
    name = "pytorch_model.bin" if kind == "hugging-face" else "open_clip_pytorch_model.bin"
    torch.save(load_file(weights), theirs / name)
    weights.unlink()

    out = tmp_path / "back"
    tool.export(tool.Arguments(checkpoint=theirs, format="open_clip", out=out))

    ours, again = (load_file(f / "open_clip_model.safetensors") for f in (checkpoint, out))
    assert all(torch.allclose(again[name], value) for name, value in ours.items())


def test_other_pixels_in_open_clip_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = checkpoint_of(clip_config("tessera-demo"), tmp_path / "step_000000010")
    monkeypatch.setattr(tool, "preprocess_config", lambda config: {"mean": [0.5] * 3})
    with pytest.raises(tool.ExportError, match="normalises pixels"):
        tool.export(tool.Arguments(checkpoint=checkpoint, format="open_clip", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_average_of_the_weights(tmp_path: Path) -> None:
    config = clip_config("tessera-demo")
    checkpoint, _ = checkpoint_of(config, tmp_path / "step_000000010")
    words = {"checkpoint": checkpoint, "format": "open_clip", "out": tmp_path / "exported"}
    with pytest.raises(ValueError, match=r"optim\.ema_samples keep an average"):
        tool.Arguments(ema=True, **words)
    torch.manual_seed(1)
    average = open_clip_weights.dump(build_clip(config))
    save_file(average, checkpoint / "ema.safetensors")
    tool.export(tool.Arguments(ema=True, **words))
    written = load_file(tmp_path / "exported" / "open_clip_model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in average.items())


def test_file_of_a_known_model_opens_by_name(tmp_path: Path) -> None:
    checkpoint, clip = checkpoint_of(clip_config("ViT-S-32-alt"), tmp_path / "step_000000010")
    out = tmp_path / "model.safetensors"
    arguments = tool.Arguments(checkpoint=checkpoint, format="open_clip", out=out)
    assert tool.export(arguments)["model"] == "ViT-S-32-alt"
    theirs: Any
    theirs, _, _ = open_clip.create_model_and_transforms("ViT-S-32-alt", pretrained=str(out))
    ids = open_clip.tokenize(["a cat", "two dogs on a hill"])
    with torch.no_grad():
        wanted = theirs.eval().encode_text(ids)
    torch.testing.assert_close(caption_features(clip, ids), wanted, atol=1e-5, rtol=1e-5)


def test_folder_opens_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    checkpoint, clip = checkpoint_of(clip_config("tessera-demo"), tmp_path / "step_000000010")
    done = run(checkpoint, "--format", "hugging-face", "--out", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["max_difference"] <= 1e-5
    model: Any = transformers.CLIPModel.from_pretrained(tmp_path / "exported").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "exported")
    texts = ["a cat", "two dogs on a hill"]
    with torch.no_grad():
        found = model.get_text_features(**processor(text=texts, return_tensors="pt", padding=True))
    found = getattr(found, "pooler_output", found)
    ids = open_clip.tokenize(texts, context_length=32)
    torch.testing.assert_close(caption_features(clip, ids), found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "text", [{"causal": False, "pool": "last"}, {"pool": "eos", "eos_id": 5}, {"pool": "last"}]
)
def test_other_poolings_are_checked_too(tmp_path: Path, text: dict[str, Any]) -> None:
    demo = clip_config("tessera-demo")
    vision = dataclasses.replace(demo.vision, pool="avg", layer_scale=0.1)
    text_config = dataclasses.replace(demo.text, vocab_size=100, **text)
    config = dataclasses.replace(demo, vision=vision, text=text_config, custom_text=True)
    checkpoint, _ = checkpoint_of(config, tmp_path / "step_000000010")
    out = tmp_path / "exported"
    tool.export(tool.Arguments(checkpoint=checkpoint, format="open_clip", out=out))
    assert "text.text_projection" in load_file(out / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="mean of patches"):
        tool.export(
            tool.Arguments(checkpoint=checkpoint, format="hugging-face", out=tmp_path / "hf")
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "step_000000010"]


def test_result_with_other_features_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = checkpoint_of(clip_config("tessera-demo"), tmp_path / "step_000000010")
    dump = open_clip_weights.dump

    def wrong(clip: Clip) -> dict[str, Tensor]:
        weights = dump(clip)
        return weights | {"visual.proj": weights["visual.proj"].flip(0).contiguous()}

    monkeypatch.setattr("tessera.model.open_clip_weights.dump", wrong)
    out = tmp_path / "exported"
    with pytest.raises(tool.ExportError, match="features differ by"):
        tool.export(tool.Arguments(checkpoint=checkpoint, format="open_clip", out=out))
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000010"]


def test_wrong_use_is_named(tmp_path: Path) -> None:
    checkpoint, _ = checkpoint_of(clip_config("tessera-demo"), tmp_path / "step_000000010")
    with pytest.raises(ValueError, match="let --out be a folder"):
        tool.export(
            tool.Arguments(
                checkpoint=checkpoint, format="open_clip", out=tmp_path / "model.safetensors"
            )
        )
    with pytest.raises(ValueError, match="exists: choose another --out"):
        tool.Arguments(checkpoint=checkpoint, format="open_clip", out=checkpoint)
    for out in (checkpoint, tmp_path, checkpoint / ".." / checkpoint.name):
        with pytest.raises(ValueError, match="holds the checkpoint"):
            tool.Arguments(checkpoint=checkpoint, format="open_clip", out=out, overwrite=True)
    done = run(tmp_path, "--format", "open_clip", "--out", tmp_path / "exported")
    assert done.returncode == 2
    assert "name a checkpoint folder" in done.stderr
