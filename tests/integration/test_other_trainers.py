"""The loader in somebody else's trainer: dense batches, texts in three forms, and the programs of
docs/loader.md as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from tessera import LoaderConfig, open_loader
from tessera.pipeline.batch import DenseBatch, PackedBatch
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.patches import normalise, patchify

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
CONFIG = LoaderConfig(batch_size=8, image_size=32, patch_size=16, context_length=16, seed=3)


def packed_and_dense(index: Path, step: int = 2, **changes: Any) -> tuple[PackedBatch, DenseBatch]:
    with open_loader(index, CONFIG) as loader:
        packed = loader.assemble(step)
    with open_loader(index, CONFIG, output="dense", **changes) as loader:
        return packed, loader.assemble(step)


def test_dense_images_are_those_of_the_packed_patches(coloured_index: Path) -> None:
    packed, dense = packed_and_dense(coloured_index)
    assert dense.images.dtype == torch.uint8
    assert dense.images.shape == (8, 3, 32, 32)
    assert dense.images.is_contiguous()
    assert torch.equal(dense.images, packed.dense())
    assert torch.equal(dense.sample_ids, packed.sample_ids)
    assert dense.tokens is not None
    assert torch.equal(dense.tokens, packed.tokens)
    assert dense.visible is None


def test_normalised_images_are_what_open_clip_gives_a_model(coloured_index: Path) -> None:
    packed, dense = packed_and_dense(coloured_index, pixels="float")
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    expected = (packed.dense().float() / 255 - mean) / std
    torch.testing.assert_close(dense.images, expected, atol=1e-5, rtol=0)


def test_texts_as_open_clips_tokenizer_and_as_strings(coloured_index: Path) -> None:
    packed, padded = packed_and_dense(coloured_index, texts="padded")
    _, raw = packed_and_dense(coloured_index, texts="raw")
    assert all("picture with the number" in text for text in raw.texts), raw.texts
    expected = open_clip.get_tokenizer("ViT-B-32", context_length=16)(list(raw.texts))
    assert padded.tokens is not None
    assert padded.tokens.dtype == torch.int64
    assert torch.equal(padded.tokens, expected)
    assert torch.equal(packed.padded_tokens(16), expected)
    assert padded.text_offsets is raw.tokens is raw.text_offsets is None


def test_hidden_patches_are_black_and_named(coloured_index: Path) -> None:
    mask = MaskConfig(kind="random", mask_ratio=0.5)
    with open_loader(coloured_index, CONFIG, mask=mask) as loader:
        packed = loader.assemble(0)
    with open_loader(coloured_index, CONFIG, mask=mask, output="dense") as loader:
        dense = loader.assemble(0)
    assert dense.visible is not None
    whole = patchify(dense.images.permute(0, 2, 3, 1), 16)
    assert torch.equal(whole[dense.visible], packed.patches)
    shown = patchify(packed.dense().permute(0, 2, 3, 1), 16)
    assert torch.equal(shown, whole * dense.visible[:, :, None])
    with pytest.raises(ValueError, match="needs the grid"):
        replace(packed, host_grids=None).dense()


def test_ranks_and_resume_are_exact_in_dense_batches_too(coloured_index: Path) -> None:
    with open_loader(coloured_index, CONFIG, output="dense") as loader:
        whole = [next(loader).images for _ in range(4)]
    for rank in range(2):
        with open_loader(coloured_index, CONFIG, output="dense", rank=rank, world_size=2) as loader:
            loader.seek(3)
            assert torch.equal(next(loader).images, whole[3][4 * rank : 4 * rank + 4])


@pytest.mark.parametrize("changes", [{"texts": "raw"}, {"pixels": "float"}])
def test_what_a_packed_batch_cannot_hold_is_refused(
    changes: dict[str, Any], coloured_index: Path
) -> None:
    with pytest.raises(ValueError, match="take output='dense'"):
        open_loader(coloured_index, CONFIG, **changes)


def test_normalising_is_that_of_the_patches(coloured_index: Path) -> None:
    _, dense = packed_and_dense(coloured_index, pixels="float")
    packed, _ = packed_and_dense(coloured_index)
    again = patchify(dense.images.permute(0, 2, 3, 1), 16)
    torch.testing.assert_close(again.flatten(0, 1), normalise(packed.patches))


def run_example(name: str, folder: Path, *words: str, ranks: int = 1, **settings: str) -> str:
    program = [str(EXAMPLES / name), *words]
    command = [sys.executable, *program]
    if ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(ranks), *program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


SMALL: dict[str, Any] = {"MODEL": "vit_tiny_patch16_224", "SIZE": "32"}


def test_the_timm_loop_learns_resumes_and_runs_on_ranks(
    coloured_index: Path, tmp_path: Path
) -> None:
    run_example("timm_training.py", tmp_path, str(coloured_index), STEPS="2", **SMALL)
    assert torch.load(tmp_path / "timm_training.pt")["step"] == 2
    told = run_example(
        "timm_training.py", tmp_path, str(coloured_index), STEPS="3", ranks=2, **SMALL
    )
    assert {"rank 0 step 3", "rank 1 step 3"} <= set(re.findall(r"rank \d step \d", told))


def test_the_packed_vit_sees_half_of_the_patches(coloured_index: Path, tmp_path: Path) -> None:
    told = run_example("packed_vit.py", tmp_path, str(coloured_index), STEPS="2", **SMALL)
    assert re.search(r"step 2 loss \d\.\d+, 2 patches an image", told)


def test_the_packed_vit_is_timms_model_where_nothing_is_masked(coloured_index: Path) -> None:
    source = (EXAMPLES / "packed_vit.py").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(source.split("\ndevice = ")[0].replace("sys.argv[1]", "''"), names)
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=256, img_size=32).eval()
    packed, dense = packed_and_dense(coloured_index, pixels="float")
    with torch.no_grad():
        found = names["encode"](vit, packed)  # pyright: ignore[reportCallIssue]
        torch.testing.assert_close(found, vit(dense.images), atol=1e-4, rtol=1e-4)


def test_open_clips_own_program_trains_on_the_loader_and_resumes(
    coloured_index: Path, tmp_path: Path
) -> None:
    pytest.importorskip("open_clip_train.main")
    words = ["--train-data", str(coloured_index), "--model", "ViT-S-32-alt", "--batch-size", "48"]
    words += ["--force-image-size", "32", "--force-context-length", "16", "--device", "cpu"]
    words += ["--precision", "fp32", "--workers", "1", "--logs", str(tmp_path), "--name", "run"]
    words += ["--log-every-n-steps", "1", "--save-frequency", "1"]
    first = run_example("open_clip_training.py", tmp_path, *words, "--epochs", "1")
    assert len(re.findall(r"Train Epoch: 0 .* Loss: \d", first)) == 2
    second = run_example(
        "open_clip_training.py", tmp_path, *words, "--epochs", "2", "--resume", "latest"
    )
    assert "Train Epoch: 0" not in second
    assert len(re.findall(r"Train Epoch: 1 .* Loss: \d", second)) == 2


def test_the_page_shows_these_programs() -> None:
    page = (ROOT / "docs" / "loader.md").read_text(encoding="utf-8")
    for name in ("timm_training.py", "packed_vit.py", "open_clip_training.py"):
        assert f"(examples/{name})" in page
