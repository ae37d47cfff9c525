"""Writes the demo data set as tar shards, in parallel, the same bytes for any number of workers.

Layout, that of img2dataset and, for the held-out split, of CLIP_benchmark:

    OUT/train/00000.tar ...       KEY.jpg KEY.txt KEY.json
    OUT/heldout/00000.tar ...     KEY.jpg KEY.txt KEY.json KEY.cls
    OUT/heldout/classnames.txt  zeroshot_classification_templates.txt  nshards.txt
    OUT/demo.json                 what was drawn, written last
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tessera.recipes.demo import backgrounds, paint, picture
from tessera.recipes.demo.captions import class_names
from tessera.recipes.demo.objects import HELDOUT_PAIRS
from tessera.recipes.demo.samples import make_sample
from tessera.recipes.demo.scenes import Split

DRAWING_VERSION = 3
"""Raise it whenever the same seed draws other pictures or words: old data is then made anew."""

SAMPLES_PER_SHARD = 500
_REPORT_EVERY = 50
_RECORD_NAME = "demo.json"
_TEMPLATES = (
    "{c}.",
    "a photo of {c}.",
    "a picture of {c}.",
    "an image of {c}.",
    "a snapshot of {c}.",
    "this photo shows {c}.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """One tar file to write."""

    path: Path
    """Where it goes."""

    seed: int
    """Seed of the data set."""

    split: Split
    """Split of its samples."""

    first: int
    """Number of its first sample within the split."""

    stop: int
    """One past the number of its last sample."""


def write_demo_shards(
    out_dir: Path,
    *,
    num_train: int,
    num_heldout: int,
    seed: int = 0,
    num_workers: int,
    progress: Callable[[int], object] | None,
) -> None:
    """Draws the demo data set into `out_dir`.

    Everything is written beside `out_dir` first and renamed at the end, so an interrupted run
    leaves nothing under the final name. A demo data set with other parameters that is already
    there is replaced.

    Args:
        out_dir: Folder to make; its parent is made where absent.
        num_train: Number of training samples, at least 1.
        num_heldout: Number of held-out samples, at least 1.
        seed: Seed of every random choice; the held-out (class, colour) pairs do not depend on it.
        num_workers: Number of processes that draw, at least 1; with 1 this process draws.
        progress: Called in this process with the number of samples drawn since the last call.

    Raises:
        ValueError: A number is below 1.
        FileExistsError: `out_dir` holds something other than a demo data set.
        RuntimeError: A worker process died.
    """
    for name, value in (
        ("num_train", num_train),
        ("num_heldout", num_heldout),
        ("num_workers", num_workers),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    _check_replaceable(out_dir)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.partial-", dir=out_dir.parent))
    try:
        parameters = _parameters(num_train=num_train, num_heldout=num_heldout, seed=seed)
        _fill(scratch / "new", parameters, num_workers, progress or (lambda _: None))
        if out_dir.exists():
            out_dir.rename(scratch / "old")
        (scratch / "new").rename(out_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def demo_shards_ready(out_dir: Path, *, num_train: int, num_heldout: int, seed: int) -> bool:
    """Whether `out_dir` holds a whole demo data set with exactly these parameters."""
    parameters = _parameters(num_train=num_train, num_heldout=num_heldout, seed=seed)
    try:
        return json.loads((out_dir / _RECORD_NAME).read_text())["parameters"] == parameters
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _parameters(*, num_train: int, num_heldout: int, seed: int) -> dict[str, int]:
    return {
        "drawing_version": DRAWING_VERSION,
        "num_train": num_train,
        "num_heldout": num_heldout,
        "seed": seed,
        "samples_per_shard": SAMPLES_PER_SHARD,
    }


def _check_replaceable(out_dir: Path) -> None:
    if not out_dir.exists():
        return
    is_ours = (out_dir / _RECORD_NAME).is_file()
    is_empty = out_dir.is_dir() and not any(out_dir.iterdir())
    if not (is_ours or is_empty):
        raise FileExistsError(
            f"{out_dir} exists and is not a demo data set (no {_RECORD_NAME}); "
            "choose another folder or remove it"
        )


def _fill(
    folder: Path, parameters: dict[str, int], num_workers: int, progress: Callable[[int], object]
) -> None:
    shards: list[_Shard] = []
    splits: tuple[tuple[Split, int], ...] = (
        ("train", parameters["num_train"]),
        ("heldout", parameters["num_heldout"]),
    )
    for split, num_samples in splits:
        (folder / split).mkdir(parents=True)
        shards += _plan(folder / split, parameters["seed"], split, num_samples)
    _warm_up()
    if num_workers == 1:
        for shard in shards:
            for num_done in _write_shard(shard):
                progress(num_done)
    else:
        _write_in_parallel(shards, num_workers, progress)
    _write_class_files(folder / "heldout", sum(shard.split == "heldout" for shard in shards))
    record = {
        "parameters": parameters,
        "classes": class_names(),
        "heldout_pairs": sorted(HELDOUT_PAIRS),
    }
    (folder / _RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n")


def _plan(folder: Path, seed: int, split: Split, num_samples: int) -> Iterator[_Shard]:
    for number, first in enumerate(range(0, num_samples, SAMPLES_PER_SHARD)):
        yield _Shard(
            path=folder / f"{number:05d}.tar",
            seed=seed,
            split=split,
            first=first,
            stop=min(first + SAMPLES_PER_SHARD, num_samples),
        )


def _warm_up() -> None:
    """Makes the noise and pattern tiles, which forked workers then share."""
    backgrounds.tiles()
    paint.patterns()
    picture.sensor_noise()


def _write_shard(shard: _Shard) -> Iterator[int]:
    """Writes one tar; yields after every few samples how many were drawn since."""
    with tarfile.open(shard.path, "w", format=tarfile.USTAR_FORMAT) as tar:
        num_new = 0
        for index in range(shard.first, shard.stop):
            for name, content in make_sample(shard.seed, shard.split, index).members():
                # TarInfo's defaults hold no clock, user or umask: equal samples, equal bytes.
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            num_new += 1
            if num_new == _REPORT_EVERY or index == shard.stop - 1:
                yield num_new
                num_new = 0


def _write_class_files(folder: Path, num_shards: int) -> None:
    texts = {
        "classnames.txt": "\n".join(class_names()),
        "zeroshot_classification_templates.txt": "\n".join(_TEMPLATES),
        "nshards.txt": str(num_shards),
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n")


def _write_in_parallel(
    shards: list[_Shard], num_workers: int, progress: Callable[[int], object]
) -> None:
    # Fork shares the tiles and, unlike spawn, does not import the caller's main module again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    workers: dict[Connection, BaseProcess] = {}
    try:
        for k in range(min(num_workers, len(shards))):
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(
                target=_work, args=(shards[k::num_workers], sender, os.getpid()), daemon=True
            )
            worker.start()
            sender.close()
            workers[receiver] = worker
        _follow(dict(workers), progress)
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.join()


def _work(shards: list[_Shard], sender: Connection, parent_id: int) -> None:
    """Body of a worker process: writes its shards, reporting to the parent."""
    # The caller's handlers came along with the fork; a signal has to end this process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for shard in shards:
            for num_done in _write_shard(shard):
                if os.getppid() != parent_id:
                    return
                sender.send(num_done)
        sender.send(None)
    except OSError as error:
        sender.send(str(error))


def _follow(workers: dict[Connection, BaseProcess], progress: Callable[[int], object]) -> None:
    """Passes on the workers' reports until all have finished."""
    while workers:
        for receiver in wait(list(workers)):
            assert isinstance(receiver, Connection)
            try:
                message = receiver.recv()
            except EOFError:
                worker = workers[receiver]
                worker.join()
                if worker.exitcode == -signal.SIGINT:
                    raise KeyboardInterrupt from None
                raise RuntimeError(
                    f"a process drawing the demo data died (exit code {worker.exitcode}); "
                    "try num_workers=1 to see why"
                ) from None
            if message is None:
                del workers[receiver]
            elif isinstance(message, str):
                raise OSError(f"drawing the demo data failed: {message}")
            else:
                progress(message)
