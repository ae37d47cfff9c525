"""Selections from the command line to the model: what is chosen is what is trained on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.pipeline import LoaderConfig, open_evaluation_loader, open_loader
from tessera.pipeline.index import ScanOptions, build_index
from tessera.pipeline.index.dataset import open_dataset
from tessera.pipeline.masking import MaskConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG = LoaderConfig(
    batch_size=16, image_size=64, mask=MaskConfig(kind="random", mask_ratio=0.5), num_threads=1
)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def select(*words: object) -> dict[str, Any]:
    done = run("tools/select_samples.py", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def train(index: Path, run_dir: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return run(
        *("train.py", "flickr8k", "--data.train", f"{index}@train", "--run-dir", run_dir),
        *("--evaluation.retrieval", f"{index}@heldout", "--model", "tessera-demo"),
        *("--evaluation.zero-shot", f"{index}@heldout", "--total-samples", 64),
        *("--batch-size", 16, "--optim.warmup-samples", 16, "--save-every", 2, *more),
    )


@pytest.fixture
def index(coloured_index: Path, tmp_path: Path) -> Path:
    """96 samples, number n of the colour n % 6; a copy, to be written to."""
    shutil.copytree(coloured_index.parent, tmp_path / "copy")
    return tmp_path / "copy" / "index"


@pytest.fixture(scope="module")
def chosen(coloured_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with the selections `train`, `heldout` and `red` (labels 0 and 1)."""
    folder = tmp_path_factory.mktemp("chosen") / "copy"
    shutil.copytree(coloured_index.parent, folder)
    summary = select(folder / "index", "--split-into", "train=0.75", "heldout=0.25")
    counts = {entry["name"]: entry["num_samples"] for entry in summary["selections"]}
    assert counts.keys() == {"train", "heldout"}
    assert sum(counts.values()) == 96
    select(folder / "index", "--out", "red", "--where", "label in (0, 1)")
    return folder / "index"


def red_rows() -> list[int]:
    return [n for n in range(96) if n % 6 < 2]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loader_serves_the_rows_of_a_selection_and_no_others(
    chosen: Path, world_size: int
) -> None:
    served = []
    for rank in range(world_size):
        config = replace(CONFIG, rank=rank, world_size=world_size)
        with open_loader(f"{chosen}@red", config) as loader:
            batches = [next(loader) for _ in range(4)]
            assert loader.index.num_samples == 96
        served.append(torch.stack([batch.sample_ids for batch in batches]))
    ids = torch.cat(served, dim=1).flatten().tolist()
    for number in range(2):
        assert sorted(ids[32 * number : 32 * number + 32]) == red_rows()


def test_a_sample_is_the_same_with_and_without_a_selection(chosen: Path) -> None:
    """Ids are rows of the index, so captions, crops and masks of a visit do not change."""
    with open_loader(f"{chosen}@red", CONFIG) as few, open_loader(chosen, CONFIG) as all_:
        shown, whole = few.preview(0), [all_.preview(step) for step in range(6)]
    at = {
        int(row): (s, p) for s, v in enumerate(whole) for p, row in enumerate(v.visits.sample_ids)
    }
    for place, row in enumerate(shown.visits.sample_ids.tolist()):
        step, other = at[row]
        assert torch.equal(shown.images[place], whole[step].images[other])
        assert torch.equal(shown.noise[place], whole[step].noise[other])
        assert shown.caption_rows[place] == whole[step].caption_rows[other]


def test_a_loader_over_a_selection_resumes(chosen: Path) -> None:
    with open_loader(f"{chosen}@red", CONFIG) as loader:
        expected = [next(loader) for _ in range(5)][3:]
    with open_loader(f"{chosen}@red", CONFIG) as loader:
        loader.seek(3)
        for batch in expected:
            again = next(loader)
            assert torch.equal(again.sample_ids, batch.sample_ids)
            assert torch.equal(again.patches, batch.patches)
            assert torch.equal(again.tokens, batch.tokens)


def test_a_selection_of_everything_is_the_same_run(index: Path) -> None:
    select(index, "--out", "everything")
    with open_loader(index, CONFIG) as plain, open_loader(f"{index}@everything", CONFIG) as loader:
        for _ in range(8):
            assert torch.equal(next(plain).sample_ids, next(loader).sample_ids)


def test_evaluation_goes_once_through_a_selection_in_order(chosen: Path) -> None:
    with open_evaluation_loader(f"{chosen}@red", replace(CONFIG, batch_size=10)) as loader:
        batches = list(loader)
    assert [batch.num_samples for batch in batches] == [10, 10, 10, 2]
    assert torch.cat([batch.sample_ids for batch in batches]).tolist() == red_rows()


def test_a_batch_larger_than_the_selection_is_refused(chosen: Path) -> None:
    with pytest.raises(ValueError, match=r"32 samples of .*@red: .*same pair twice"):
        open_loader(f"{chosen}@red", replace(CONFIG, batch_size=33))


def test_the_tool_says_what_was_dropped(index: Path) -> None:
    done = run(
        *("tools/select_samples.py", index, "--out", "some"),
        *("--where", "label != 3", "key < '000000012'", "--limit", 4),
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "samples    96 in",
        "dropped    16 by label != 3",
        "000000003, label 3",
        "dropped    70 by key < '000000012'",
        "84 fail it",
        "@some: 4 samples, 4.17%",
    ):
        assert line in done.stdout
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["conditions"][0] == {
        "condition": "label != 3", "failing": 16, "missing": 0, "dropped": 16
    }  # fmt: skip
    rows = open_dataset(f"{index}@some").sample_ids(0, 96)
    assert summary["selections"][0]["num_samples"] == len(rows) == 4
    assert (rows % 6 != 3).all()
    assert rows.max() < 12


def test_the_printed_command_makes_the_same_selection_again(index: Path) -> None:
    select(index, "--out", "base", "--where", "label < 5")
    words = ("--where", "contains(text, '1') and label in (1, 2)", "--unique", "key", "text")
    first = select(f"{index}@base", "--out", "some", *words, "--limit", 5, "--seed", 3)
    path = index / "selections" / "some.arrow"
    content = path.read_bytes()
    listed = select(index, "--list")
    made_by = {entry["name"]: entry["made_by"] for entry in listed["selections"]}["some"]
    select(index, "--remove", "some")
    assert not path.exists()
    done = subprocess.run(
        made_by.replace("python ", f"{sys.executable} ", 1),
        shell=True, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == content
    assert json.loads(done.stdout.splitlines()[-1])["selections"] == first["selections"]


def test_one_part_of_a_split_is_the_same_as_with_all_its_parts(index: Path) -> None:
    select(index, "--out", "all", "--split-into", "train=0.75", "heldout=0.25")
    for part in ("train", "heldout"):
        select(index, "--out", part, "--heldout-share", 0.25, "--split", part)
        one, other = open_dataset(f"{index}@{part}"), open_dataset(f"{index}@all-{part}")
        assert one.selection_fingerprint == other.selection_fingerprint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--where", "width > 3"], "--out NAME"),
        (["--out", "a/b"], "cannot be called"),
        (["--out", "a", "--where", "widht > 3"], '"widht" not found'),
        (["--out", "a", "--where", "width > 1000"], "nothing is kept"),
        (["--out", "a", "--heldout-share", "0.1"], "go together"),
        (["--out", "a", "--heldout-share", "2", "--split", "train"], "between 0 and 1"),
        (["--split-into", "train=1"], "at least two parts"),
        (["--out", "a", "--unique", "dhash"], "no column 'dhash'"),
        (["--remove", "nothing"], "no selection 'nothing'"),
        (["--out", "a", "--nothing"], "nothing"),
    ],
)
def test_wrong_use_ends_with_status_2_and_writes_nothing(
    index: Path, words: list[str], message: str
) -> None:
    done = run("tools/select_samples.py", index, *words)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(index.glob("selections/*"))


def test_a_full_disk_or_a_locked_folder_is_told(index: Path) -> None:
    (index / "selections").write_text("in the way")
    done = run("tools/select_samples.py", index, "--out", "some")
    assert done.returncode == 1
    assert "announced as written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_trains_on_one_part_and_is_measured_on_the_other(
    chosen: Path, tmp_path: Path
) -> None:
    """And goes on only with the selection that it began with."""
    index = tmp_path / "copy" / "index"
    shutil.copytree(chosen.parent, index.parent)
    run_dir = tmp_path / "run"
    done = train(index, run_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained on as well" not in done.stdout
    heldout = open_dataset(f"{index}@heldout").num_samples
    scores = json.loads((run_dir / "evaluation.json").read_text())
    counts = {row["metric"]: row["n"] for row in scores["scores"]}
    assert counts["text_retrieval_recall@1"] == counts["acc1"] == heldout
    assert "train: " in (run_dir / "report.html").read_text()

    (run_dir / "evaluation.json").unlink()
    select(index, "--out", "train", "--where", "label < 5")
    refused = train(index, run_dir)
    assert refused.returncode == 1, refused.stdout
    assert "trained with the selection" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_training_on_what_is_held_out_is_told(index: Path, tmp_path: Path) -> None:
    select(index, "--out", "train", "--where", "key < '000000050'")
    select(index, "--out", "heldout", "--where", "key >= '000000040'")
    for words in (("--dry-run",), ()):
        done = train(index, tmp_path / "run", *words)
        assert done.returncode == 0, done.stderr
        assert "10 of the 56 samples of" in done.stdout
        assert "are trained on as well" in done.stdout


def test_a_dry_run_counts_the_selection(chosen: Path, tmp_path: Path) -> None:
    shown = train(chosen, tmp_path / "run", "--dry-run")
    num_train = open_dataset(f"{chosen}@train").num_samples
    assert f"{num_train} of 96 samples in 3 shards: {64 / num_train:.1f} epochs" in shown.stdout
    assert "warning" not in shown.stdout
    missing = train(chosen.with_name("nowhere"), tmp_path / "run", "--dry-run")
    assert missing.returncode == 0
    assert "not there yet" in missing.stdout


def test_a_stale_selection_ends_a_run_with_the_command(index: Path, tmp_path: Path) -> None:
    select(index, "--split-into", "train=0.75", "heldout=0.25")
    manifest = json.loads((index / "index.json").read_text())
    manifest["fingerprint"] = "f" * 64
    (index / "index.json").write_text(json.dumps(manifest))
    done = train(index, tmp_path / "run")
    assert done.returncode == 2
    assert "--split-into train=0.75 heldout=0.25" in done.stderr
    listed = select(index, "--list")["selections"]
    assert all("make it again" in entry["problem"] for entry in listed)


def test_all_stale_selections_are_made_again(index: Path) -> None:
    select(index, "--out", "early", "--where", "key < '000000048'")
    select(f"{index}@early", "--split-into", "train=0.75", "heldout=0.25")
    select(index, "--out", "late", "--where", "key >= '000000048'")
    names = ("early", "train", "late")
    fresh = {name: open_dataset(f"{index}@{name}").num_samples for name in names}
    assert select(index, "--renew")["renewed"] == []

    fewer = sorted((index.parent / "shards").glob("0000[01].tar"))
    build_index(fewer, index, options=ScanOptions(captions="json:captions"))
    done = select(index, "--renew")
    assert done["renewed"] == ["early", "late", "train", "heldout"]
    assert done["current"] == []
    assert open_dataset(f"{index}@early").num_samples == fresh["early"]
    assert open_dataset(f"{index}@train").num_samples == fresh["train"]
    assert open_dataset(f"{index}@late").num_samples < fresh["late"]

    select(index, "--out", "early", "--where", "key < '000000040'")
    assert select(index, "--renew")["renewed"] == ["train", "heldout"]


def test_benchmarks_take_a_selection(chosen: Path) -> None:
    done = run(
        *("tools/benchmark_data.py", f"{chosen}@red", "--image-size", 64, "--batch-size", 8),
        *("--images", 16, "--repeats", 1, "--threads", 1, "--no-storage", "--baselines"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["data"].endswith("@red")


def test_rows_are_mapped_and_not_copied(chosen: Path) -> None:
    rows = open_dataset(f"{chosen}@red").rows
    assert rows is not None
    assert not rows.flags.owndata
    assert rows.dtype == np.uint32
