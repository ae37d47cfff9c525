"""tools/add_captions.py as a person runs it, and a loader that serves what it added."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tessera.pipeline import LoaderConfig, open_loader
from tessera.pipeline.index import open_index

ROOT = Path(__file__).resolve().parents[2]
NUM_SAMPLES = 96


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/add_captions.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def index_dir(coloured_index: Path, tmp_path: Path) -> Path:
    shutil.copytree(coloured_index.parent, tmp_path / "copy")
    return tmp_path / "copy" / "index"


def test_add_then_train_on_the_mixture(index_dir: Path, tmp_path: Path) -> None:
    before = open_index(index_dir).fingerprint
    table = tmp_path / "rewrites.jsonl"
    rows = [{"key": f"{n:09d}", "caption": [f"rewrite {n} {w}" for w in "abcd"]} for n in range(90)]
    rows.append({"key": "unknown", "caption": "nobody's text"})
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = run_tool(index_dir, "rewrites", table)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["num_texts"], found["num_unknown"], found["num_samples"]) == (360, 1, 90)
    assert "coverage 93.75%" in done.stdout
    assert open_index(index_dir).fingerprint == before
    served = texts_of_a_pass(index_dir, ("caption=1", "rewrites=4"), batch_size=32)
    assert 50 < sum(text.startswith("rewrite ") for text in served.values()) < 85
    assert served == texts_of_a_pass(index_dir, ("caption=1", "rewrites=4"), batch_size=16)


def texts_of_a_pass(index_dir: Path, captions: tuple[str, ...], batch_size: int) -> dict[int, str]:
    config = LoaderConfig(
        batch_size=batch_size, image_size=32, patch_size=16, captions=captions, decoder="pil"
    )
    served: dict[int, str] = {}
    with open_loader(index_dir, config) as loader:
        for step in range(NUM_SAMPLES // batch_size):
            shown = loader.preview(step)
            texts = loader.captions.texts(shown.caption_rows)
            served |= dict(zip(shown.visits.sample_ids.tolist(), texts, strict=True))
        assert loader.stats.num_missing_captions <= 6
    assert sorted(served) == list(range(NUM_SAMPLES))
    return served


def test_a_source_that_misses_samples_counts_originals(index_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "some.csv"
    lines = ["key,caption", *(f"{n:09d},two words" for n in range(40)), f"{40:09d},one"]
    table.write_text("\n".join(lines), encoding="utf-8")
    assert run_tool(index_dir, "some", table).returncode == 0
    config = LoaderConfig(
        batch_size=96, image_size=32, patch_size=16, captions=("some",), decoder="pil"
    )
    with open_loader(index_dir, config) as loader:
        batch = next(loader)
        stats = loader.stats.snapshot()
    assert batch.num_samples == NUM_SAMPLES
    assert np.diff(batch.text_offsets.numpy()).min() >= 4
    per_step = (stats.num_missing_captions, stats.num_short_captions)
    steps = stats.pack.num_samples // NUM_SAMPLES
    assert per_step[0] >= 55 * steps
    assert per_step[1] >= steps


def test_refusals_change_nothing_and_say_what_to_do(index_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("url,caption\nhttps://a,b c\n", encoding="utf-8")
    lines = tmp_path / "redcaps_original.txt"
    lines.write_text("a caption without a key\n", encoding="utf-8")
    paths = tmp_path / "paths.csv"
    paths.write_text("key,caption\na/000000001.jpg,b c\n", encoding="utf-8")
    for arguments, message in [
        ((table, "--join", "url"), "--columns url"),
        ((table, "--join", "row"), "rows, the index 96 samples"),
        ((table,), "no column 'key'"),
        ((tmp_path / "no.csv",), "there is no file"),
        ((), "give FILES"),
        ((lines, lines, "--format", "laclip"), "--join row"),
        ((paths,), "--stem True"),
    ]:
        done = run_tool(index_dir, "extra", *arguments)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
    assert open_index(index_dir).sources == ["caption"]


def test_dry_run_writes_nothing(index_dir: Path) -> None:
    done = run_tool(
        index_dir, "extra", "--format", "shards", "--text-columns", "captions", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["coverage"] == 1.0
    assert open_index(index_dir).sources == ["caption"]
