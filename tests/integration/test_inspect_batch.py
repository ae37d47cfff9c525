"""tools/inspect_batch.py shows what the loader really serves."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.pipeline import LoaderConfig, open_loader
from tessera.pipeline.crops import CropConfig
from tessera.pipeline.index import open_index
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.reader import ShardReader
from tessera.report.batch import make_sheet, write_sheet_page, write_sheet_picture
from tessera.training.checkpoint import Checkpoint, save
from tessera.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
CONFIG = LoaderConfig(
    batch_size=8, image_size=64, patch_size=8, seed=3, crop=CropConfig(scale=(0.4, 0.6))
)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/inspect_batch.py", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_page_and_picture_of_a_step(coloured_index: Path, tmp_path: Path) -> None:
    html, png = tmp_path / "sheet.html", tmp_path / "sheet.png"
    done = run(
        str(coloured_index), "--step", "2", "--count", "5", "--batch-size", "8",
        "--image-size", "64", "--patch-size", "8", "--html", str(html), "--png", str(png),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    config = LoaderConfig(batch_size=8, image_size=64, patch_size=8, mask=MaskConfig())
    with open_loader(coloured_index, config) as it:
        batch = it.assemble(2)
        keys = it.index.keys(batch.sample_ids[:5].tolist())
    assert result["keys"] == keys
    assert result["visible_patches"] == len(batch.patches) == result["patches"] // 2
    assert result["tokens"] == len(batch.tokens)
    page = html.read_text(encoding="utf-8")
    for key in keys:
        assert key in page
    assert page.count('aria-label="the stored picture with its crop window"') == 5
    with Image.open(png) as picture:
        assert picture.height > 5 * 224


def test_the_settings_of_a_run_decide_what_is_shown(coloured_index: Path, tmp_path: Path) -> None:
    html = tmp_path / "sheet.html"
    done = run(
        str(coloured_index), "--batch-size", "8", "--image-size", "64", "--patch-size", "8",
        "--context-length", "6", "--text-reduction", "shuffle", "--decoder", "pil",
        "--captions", "caption=2", "--every-text", "--count", "8", "--html", str(html),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "decoder  pil\n" in done.stdout
    config = LoaderConfig(
        batch_size=8,
        image_size=64,
        patch_size=8,
        context_length=6,
        text_reduction="shuffle",
        captions=("caption=2",),
        every_text=True,
    )
    with open_loader(coloured_index, config) as loader:
        sheet = make_sheet(loader, 0, 8)
        table = open_index(coloured_index).captions()
        ids = loader.preview(0).visits.sample_ids
    page = html.read_text(encoding="utf-8")
    for row, number in zip(sheet.rows, ids, strict=True):
        first, last = table.rows(np.array([number]))[1]
        assert last - first == 2
        assert row.item.caption == " / ".join(table.texts(table.rows(np.array([number]))[0]))
        assert len(row.item.tokens) == 2 * 6
        assert (
            "".join(f"<span>{escape(t, quote=False)}</span> " for t in row.item.tokens).strip()
            in page
        )


def test_the_mask_of_a_run_compares_its_embeddings(coloured_index: Path, tmp_path: Path) -> None:
    weight = torch.randn(5, 3 * 8 * 8, generator=torch.Generator().manual_seed(1))
    positions = torch.zeros(64, 5)
    run_dir = RunFolder(tmp_path / "run")
    run_dir.checkpoints.mkdir(parents=True)
    parts = {"mask": {"weight": weight, "positions": positions}}
    found = Checkpoint(step=4, parts=parts, architecture={}, state={"mask_step": 3})
    save(run_dir.checkpoints, found, keep=1)
    words = [str(coloured_index), "--batch-size", "8", "--image-size", "64", "--patch-size", "8"]
    words += ["--mask.anchor-ratio", "0.05", "--mask.embedding-last", "1", "--num-steps", "4"]
    shown = tmp_path / "shown.png"
    done = run(*words, "--checkpoint", str(tmp_path / "run"), "--png", str(shown),
               "--html", str(tmp_path / "shown.html"))  # fmt: skip
    assert done.returncode == 0, done.stderr

    mask = MaskConfig(anchor_ratio=0.05, embedding_last=1)
    config = LoaderConfig(batch_size=8, image_size=64, patch_size=8, mask=mask, num_steps=4)
    with open_loader(coloured_index, config) as loader:
        by_pixels = make_sheet(loader, 0, 8)
        loader.set_patch_embedding(weight, positions, step=3)
        expected = make_sheet(loader, 0, 8)
    write_sheet_picture(expected, tmp_path / "expected.png")
    write_sheet_picture(by_pixels, tmp_path / "by_pixels.png")
    pixels = [
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("expected", "by_pixels")
    ]
    assert np.array_equal(np.asarray(Image.open(shown)), pixels[0])
    assert not np.array_equal(pixels[0], pixels[1])

    done = run(*words, "--png", str(shown), "--html", str(tmp_path / "shown.html"))
    assert "mask     of pixels alone" in done.stdout
    assert np.array_equal(np.asarray(Image.open(shown)), pixels[1])


def test_a_checkpoint_that_says_nothing_of_the_mask_is_refused(
    coloured_index: Path, tmp_path: Path
) -> None:
    words = [str(coloured_index), "--checkpoint", str(tmp_path), "--html", str(tmp_path / "x.html")]
    done = run(*words)
    assert done.returncode == 2
    assert "--checkpoint is for masks" in done.stderr
    done = run(*words, "--mask.embedding-last", "1", "--batch-size", "8")
    assert done.returncode == 1
    assert "cannot be read" in done.stderr


def test_the_order_of_a_run_decides_what_is_shown(coloured_index: Path, tmp_path: Path) -> None:
    words = ("--batch-size", "8", "--image-size", "64", "--patch-size", "8")
    order = ("--order", "window", "--window-shards", "1", "--augment.flip", "1")
    done = run(str(coloured_index), *words, *order, "--html", str(tmp_path / "sheet.html"))
    assert done.returncode == 0, done.stderr
    config = LoaderConfig(
        batch_size=8, image_size=64, patch_size=8, order="window", window_shards=1
    )
    with open_loader(coloured_index, config) as loader:
        keys = loader.index.keys(loader.assemble(0).sample_ids.tolist())
    assert json.loads(done.stdout.splitlines()[-1])["keys"] == keys


def test_the_window_shown_is_the_one_that_was_decoded(coloured_index: Path) -> None:
    with open_loader(coloured_index, CONFIG) as loader:
        sheet = make_sheet(loader, 1, 8)
        ids = loader.preview(1).visits.sample_ids
        files = ShardReader(loader.index, 1).read(ids)
    for row, data in zip(sheet.rows, files, strict=True):
        assert isinstance(data, bytes)
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        assert picture.size == row.size
        left, top, right, bottom = row.window
        assert 0.3 < (right - left) * (bottom - top) < 0.7
        box = (left * 80, top * 64, right * 80, bottom * 64)
        again = picture.resize((64, 64), Image.Resampling.BICUBIC, box=box)
        distance = np.abs(np.asarray(again).astype(int) - row.item.crop).mean()
        shifted = picture.resize((64, 64), Image.Resampling.BICUBIC)
        # The pictures are noise: any other window is far away.
        assert distance < 6
        assert distance < np.abs(np.asarray(shifted).astype(int) - row.item.crop).mean() / 2


def test_hidden_patches_are_blank_in_the_picture(coloured_index: Path, tmp_path: Path) -> None:
    config = LoaderConfig(
        batch_size=8, image_size=224, patch_size=16, mask=MaskConfig(kind="random")
    )
    with open_loader(coloured_index, config) as loader:
        sheet = make_sheet(loader, 0, 1)
    write_sheet_picture(sheet, tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    item = sheet.rows[0].item
    shown = pixels[52 : 52 + 224, 14 + 3 * 238 : 14 + 3 * 238 + 224]
    for patch, visible in enumerate(item.visible):
        y, x = patch // 14 * 16, patch % 14 * 16
        cell = shown[y : y + 16, x : x + 16]
        assert np.array_equal(cell, item.crop[y : y + 16, x : x + 16]) == visible
        assert (len(np.unique(cell.reshape(-1, 3), axis=0)) == 1) == (not visible)


@pytest.mark.parametrize(
    ("mask", "num_clusters"),
    [
        (MaskConfig(anchor_ratio=0.05), 4),
        (MaskConfig(kind="edge_aware", anchor_ratio=0.05), 4),
        (MaskConfig(kind="kmeans", num_clusters=5), 5),
        (MaskConfig(kind="random"), 0),
    ],
    ids=["cluster", "edge_aware", "kmeans", "random"],
)
def test_every_mask_shows_its_own_clusters(
    coloured_index: Path, tmp_path: Path, mask: MaskConfig, num_clusters: int
) -> None:
    with open_loader(coloured_index, replace(CONFIG, mask=mask)) as loader:
        sheet = make_sheet(loader, 0, 6)
        shown = loader.preview(0)
    clusters = mask.build().clusters(shown.patches, shown.noise)
    assert (clusters is None) == (num_clusters == 0)
    for place, row in enumerate(sheet.rows):
        item = row.item
        assert len(item.anchors) == num_clusters
        if clusters is None:
            assert (item.cluster == -1).all()
        else:
            hidden = ~item.visible
            assert np.array_equal(item.cluster[hidden], clusters.members[place].numpy()[hidden])
            assert (item.cluster[~hidden] == -1).all()
            assert hidden.any()
    page = tmp_path / "sheet.html"
    write_sheet_page(sheet, page)
    text = page.read_text("utf-8")
    assert text.count(f"{num_clusters} clusters</figcaption>") == (6 if num_clusters else 0)
    assert text.count("<figure>") == 6 * (4 if num_clusters else 3), "no empty panel"


def test_wrong_use_is_said_before_anything_is_written(coloured_index: Path, tmp_path: Path) -> None:
    html = str(tmp_path / "no.html")
    done = run(str(coloured_index), "--patch-size", "10", "--html", html)
    assert done.returncode == 2
    assert "no multiple of patch_size" in done.stderr
    assert run(str(tmp_path / "nothing"), "--html", html).returncode == 2
    assert not Path(html).exists()
