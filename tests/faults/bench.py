"""The jobs that faults are injected into: their data, their commands, and what they should give.

Everything is made once, by runs that nobody disturbs, and every disturbed run is held to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file

from tessera.pipeline.index import ScanOptions, build_index
from tessera.training.checkpoint import CheckpointError, load
from tessera.training.sample_ids import read_sample_ids
from tests.conftest import caption_of, jpeg_bytes, sample_members, write_tar
from tests.faults.processes import ROOT
from tests.tiny_models import save_llama

BATCH = 16
NUM_TRAIN = 96
STEPS_OF_PASS = NUM_TRAIN // BATCH
NUM_STEPS = 6 * STEPS_OF_PASS
NUM_PICTURES = 1500
_STEPS = list(range(1, NUM_STEPS + 1))
LIMIT_S = 240.0
"""No job of the bench may take longer, disturbed or not."""


class WrongRunError(AssertionError):
    """A run that came to its end is not as the undisturbed one."""

    def __init__(self, what: str, lost: int) -> None:
        """Say what did not hold, and how many samples its passes lack."""
        super().__init__(what)
        self.lost = lost


class Bench:
    """Data, commands and references, under one folder."""

    def __init__(self, folder: Path) -> None:
        """Nothing is made yet.

        Args:
            folder: exists and is empty.
        """
        self.folder = folder

    @cached_property
    def index(self) -> Path:
        """An index to train on: 96 pictures in three shards."""
        return self.coloured(self.folder / "train")

    def coloured(self, folder: Path) -> Path:
        """Make three shards of 32 pictures, and their index."""
        shards = folder / "shards"
        shards.mkdir(parents=True)
        for shard in range(3):
            members = [m for n in range(shard * 32, shard * 32 + 32) for m in sample_members(n)]
            write_tar(shards / f"{shard:05d}.tar", members)
        options = ScanOptions(captions="json:captions")
        build_index(sorted(shards.glob("*.tar")), folder / "index", options=options)
        return folder / "index"

    @cached_property
    def run(self) -> Path:
        """The folder of a training run on one rank."""
        run_dir = self.folder / "run"
        undisturbed(self.training(run_dir))
        return run_dir

    @cached_property
    def run_seconds(self) -> float:
        """From its first step to its end."""
        lines = (self.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return sum(json.loads(line)["step_s"] for line in lines)

    @cached_property
    def pictures(self) -> Path:
        """Pictures with their captions beside them."""
        folder = self.folder / "pictures"
        folder.mkdir()
        for number in range(NUM_PICTURES):
            (folder / f"{number:06d}.jpg").write_bytes(jpeg_bytes(number, size=(48, 40)))
            (folder / f"{number:06d}.txt").write_text(caption_of(number), encoding="utf-8")
        return folder

    @cached_property
    def shards(self) -> Path:
        """The pictures as shards."""
        self.shards_seconds = undisturbed(self.make_shards(self.folder / "shards"))
        return self.folder / "shards"

    @cached_property
    def big_index(self) -> Path:
        """The index of these shards."""
        self.index_seconds = undisturbed(self.index_shards(self.folder / "index"))
        return self.folder / "index"

    @cached_property
    def texts(self) -> Path:
        """Three further captions for each picture."""
        keys = [f"{number:09d}" for number in range(NUM_PICTURES)]
        columns = {
            f"text{n}": [f"rewrite {n} of {caption_of(number)}" for number in range(NUM_PICTURES)]
            for n in range(3)
        }
        path = self.folder / "texts.parquet"
        pq.write_table(pa.table({"key": keys, **columns}), path)
        return path

    @cached_property
    def captions(self) -> Path:
        """The file of a caption source made of them."""
        index = Path(shutil.copytree(self.big_index, self.folder / "captioned"))
        self.captions_seconds = undisturbed(self.add_captions(index))
        return index / "captions" / "more.arrow"

    @cached_property
    def encoder(self) -> Path:
        """A language model of a few thousand weights."""
        return save_llama(self.folder / "llama")

    @cached_property
    def embeddings(self) -> Path:
        """The folder of the captions' embeddings."""
        index = Path(shutil.copytree(self.big_index, self.folder / "embedded"))
        self.embeddings_seconds = undisturbed(self.embed_captions(index))
        return index / "embeddings"

    def training(self, run_dir: Path, *more: object, index: object = None) -> list[object]:
        """`train.py` as every fault disturbs it."""
        fixed = {
            "--data.train": index or self.index,
            "--run-dir": run_dir,
            "--model": "tessera-demo",
            "--total-samples": BATCH * NUM_STEPS,
            "--batch-size": BATCH,
            "--optim.warmup-samples": 4 * BATCH,
            "--precision": "float32",
            "--num-threads": 1,
            "--data.num-threads": 1,
            "--save-every": 2,
            "--log-every": 1,
        }
        words = [word for pair in fixed.items() for word in pair]
        none = ["--evaluation.retrieval", "--evaluation.zero-shot", "--log-sample-ids"]
        return [sys.executable, "train.py", "flickr8k", *words, *none, *more]

    def make_shards(self, out: Path) -> list[object]:
        """`tools/make_shards.py` on the pictures."""
        words = [self.pictures, "--out", out, "--samples-per-shard", 100]
        return [sys.executable, "tools/make_shards.py", *words, "--threads", 1]

    def index_shards(self, out: Path, shards: Path | None = None) -> list[object]:
        """`tools/index_shards.py` with two workers."""
        words = [shards or self.shards, "--out", out, "--workers", 2]
        return [sys.executable, "tools/index_shards.py", *words]

    def add_captions(self, index: Path, *more: object) -> list[object]:
        """`tools/add_captions.py` with two workers."""
        columns = ["--text-columns", "text0", "text1", "text2"]
        words = [index, "more", self.texts, *columns, "--workers", 2, *more]
        return [sys.executable, "tools/add_captions.py", *words]

    def embed_captions(self, index: Path) -> list[object]:
        """`tools/embed_captions.py` on the captions of the shards."""
        words = [index, "--encoder", self.encoder, "--name", "tiny", "--sources", "caption"]
        parts = ["--rows-per-part", 100, "--batch-size", 10]
        return [sys.executable, "tools/embed_captions.py", *words, *parts]


def undisturbed(command: list[object]) -> float:
    """Run a command to its end, which must be good; returns the seconds."""
    start = time.monotonic()
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as of the jobs that are disturbed
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return time.monotonic() - start


def last_step(run_dir: Path) -> int:
    """The last step that metrics.jsonl holds as a whole line; 0 without one."""
    return max(losses(run_dir), default=0)


def losses(run_dir: Path) -> dict[int, float]:
    """The loss of each step that is logged as a whole line."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def check_checkpoints(run_dir: Path) -> None:
    """Everything that has a checkpoint's name is a whole checkpoint."""
    for path in (run_dir / "checkpoints").glob("step_*"):
        try:
            load(path)
        except CheckpointError as error:
            raise AssertionError(f"half written under its final name: {error}") from error


def check_same_run(found: Path, expected: Path) -> int:
    """Hold a finished run to an undisturbed one, bit for bit; returns the samples lost."""
    with counted(found):
        assert losses(found) == losses(expected), "other losses than without the fault"
        names = [run / "checkpoints" / f"step_{NUM_STEPS:09d}" for run in (found, expected)]
        one, other = (load_file(name / "open_clip_model.safetensors") for name in names)
        assert all(one[name].equal(other[name]) for name in other), "other weights"
        check_nothing_left(found)
    return check_order(found, expected)


def check_order(found: Path, expected: Path) -> int:
    """Hold a finished run's samples to those of an undisturbed one; returns the samples lost."""
    ids = read_sample_ids(found / "sample_ids.jsonl")
    assert list(ids) == _STEPS, f"steps {list(ids)}"
    with counted(found):
        assert ids == read_sample_ids(expected / "sample_ids.jsonl"), "another order of samples"
    return _num_lost(ids)


@contextmanager
def counted(run_dir: Path) -> Iterator[None]:
    """Count the samples of a finished run that fails in the block, if all its steps are recorded.

    Raises:
        WrongRunError: for an AssertionError in the block.
    """
    try:
        yield
    except AssertionError as error:
        ids = read_sample_ids(run_dir / "sample_ids.jsonl")
        if list(ids) != _STEPS:
            raise
        raise WrongRunError(str(error), _num_lost(ids)) from error


def _num_lost(ids: dict[int, list[int]]) -> int:
    """Samples that passes lack; one that is served twice stands where another is lacking."""
    lost = 0
    for first in range(1, NUM_STEPS + 1, STEPS_OF_PASS):
        steps = range(first, first + STEPS_OF_PASS)
        lost += NUM_TRAIN - len({id_ for step in steps for id_ in ids[step]})
    return lost


def check_nothing_left(folder: Path) -> None:
    """No hidden or half-written file is in a folder, nor hidden beside it."""
    left = [path for path in folder.rglob("*") if _is_temporary(path)]
    left += [path for path in folder.parent.iterdir() if _is_temporary(path)]
    assert not left, f"left behind: {[path.name for path in left]}"


def hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of all files of a folder by their relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") or "partial" in path.name
