"""The demo data set on disk: layout, sameness, safety against interruption."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from tessera.pipeline.index import ScanOptions, build_index, open_index
from tessera.recipes.demo import shards as demo_shards
from tessera.recipes.demo.captions import class_names
from tessera.recipes.demo.objects import HELDOUT_PAIRS
from tessera.recipes.demo.shards import demo_shards_ready, write_demo_shards

ROOT = Path(__file__).resolve().parents[2]
NUM_TRAIN, NUM_HELDOUT = 70, 40


def draw(out_dir: Path, *, num_workers: int, seed: int = 0) -> list[int]:
    reports: list[int] = []
    write_demo_shards(
        out_dir,
        num_train=NUM_TRAIN,
        num_heldout=NUM_HELDOUT,
        seed=seed,
        num_workers=num_workers,
        progress=reports.append,
    )
    return reports


def ready(out_dir: Path, *, seed: int = 0) -> bool:
    return demo_shards_ready(out_dir, num_train=NUM_TRAIN, num_heldout=NUM_HELDOUT, seed=seed)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("demo") / "shards"
    draw(out_dir, num_workers=1)
    return out_dir


def members(tar_path: Path) -> dict[str, bytes]:
    with tarfile.open(tar_path) as tar:
        return {m.name: handle.read() for m in tar if (handle := tar.extractfile(m)) is not None}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_bytes_for_any_number_of_workers(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(draw(tmp_path / "two", num_workers=2)) == NUM_TRAIN + NUM_HELDOUT
    assert contents(tmp_path / "two") == contents(drawn)
    monkeypatch.setattr(demo_shards, "SAMPLES_PER_SHARD", 16)
    draw(tmp_path / "small-1", num_workers=1)
    draw(tmp_path / "small-3", num_workers=3)
    assert contents(tmp_path / "small-1") == contents(tmp_path / "small-3")
    assert len(list((tmp_path / "small-3" / "train").glob("*.tar"))) == 5


def test_another_seed_draws_other_pictures(drawn: Path, tmp_path: Path) -> None:
    draw(tmp_path / "other", num_workers=2, seed=1)
    name = "train/00000.tar"
    assert (tmp_path / "other" / name).read_bytes() != (drawn / name).read_bytes()


def test_samples_hold_picture_captions_and_truth(drawn: Path) -> None:
    train, heldout = members(drawn / "train/00000.tar"), members(drawn / "heldout/00000.tar")
    keys = [{name.split(".")[0] for name in split} for split in (train, heldout)]
    assert [len(k) for k in keys] == [NUM_TRAIN, NUM_HELDOUT]
    assert not keys[0] & keys[1]
    assert not any(name.endswith(".cls") for name in train)
    for key, split in [(k, train) for k in keys[0]] + [(k, heldout) for k in keys[1]]:
        assert re.fullmatch(r"\d{9}", key)
        record = json.loads(split[f"{key}.json"])
        assert split[f"{key}.txt"].decode() == record["captions"][0] == record["caption"]
        assert len(set(record["captions"])) == 3
        with Image.open(io.BytesIO(split[f"{key}.jpg"])) as image:
            assert image.size == (record["width"], record["height"])


def test_held_out_labels_and_class_files_agree(drawn: Path) -> None:
    folder = drawn / "heldout"
    names = (folder / "classnames.txt").read_text().splitlines()
    assert names == class_names()
    assert int((folder / "nshards.txt").read_text()) == len(list(folder.glob("*.tar")))
    templates = (folder / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert templates
    assert all("{c}" in line for line in templates)
    files = members(folder / "00000.tar")
    for name, label in files.items():
        if name.endswith(".cls"):
            truth = json.loads(files[name.replace(".cls", ".json")])["scene"]
            assert truth["things"][0]["colour"] in names[int(label)]
            assert HELDOUT_PAIRS[int(label)][1] == truth["background"]


def test_tar_members_carry_no_clock_or_user(drawn: Path) -> None:
    with tarfile.open(drawn / "train/00000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")


def test_every_sample_can_be_indexed(drawn: Path, tmp_path: Path) -> None:
    for split, number in (("train", NUM_TRAIN), ("heldout", NUM_HELDOUT)):
        shards = sorted((drawn / split).glob("*.tar"))
        build_index(shards, tmp_path / split, options=ScanOptions(captions="json:captions"))
        assert open_index(tmp_path / split).num_samples == number


def test_ready_only_with_the_same_parameters(drawn: Path, tmp_path: Path) -> None:
    assert ready(drawn)
    assert not ready(drawn, seed=1)
    assert not ready(tmp_path / "absent")
    assert not demo_shards_ready(drawn, num_train=71, num_heldout=NUM_HELDOUT, seed=0)


def test_a_changed_drawing_asks_for_new_data(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_shards, "DRAWING_VERSION", demo_shards.DRAWING_VERSION + 1)
    assert not ready(drawn)


def test_an_older_demo_set_is_replaced_and_foreign_files_are_not(tmp_path: Path) -> None:
    draw(tmp_path / "set", num_workers=1, seed=1)
    draw(tmp_path / "set", num_workers=1, seed=0)
    assert ready(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a demo data set"):
        draw(tmp_path / "mine", num_workers=1)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, num_workers: int) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo_shards(
            tmp_path / "set",
            num_train=2000,
            num_heldout=10,
            num_workers=num_workers,
            progress=interrupt,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_ends_the_workers_at_once_and_quietly(tmp_path: Path, whole_group: bool) -> None:
    program = f"""
import sys
from pathlib import Path
from tessera.recipes.demo.shards import write_demo_shards
try:
    write_demo_shards(Path({str(tmp_path / "set")!r}), num_train=100000, num_heldout=10,
                      num_workers=2, progress=lambda n: print(n, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    child.stdout.readline()
    start = time.monotonic()
    (os.killpg if whole_group else os.kill)(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_senseless_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_workers"):
        draw(tmp_path / "set", num_workers=0)
