"""How fast do JPEG shards become packed batches, where does the time go, and who is faster?

    python tools/benchmark_data.py data/shards
    python tools/benchmark_data.py INDEX --crop.scale 0.4 1.0 --sweep.threads 1 2 4 --html out.html

Takes a folder of tars, of which a temporary index is made, or INDEX[@SELECTION]. A small set is
gone through again and again. Three questions, answered in one run on the same files:

- The ladder: read, + decode, + patchify, + mask, + pack (+ copy to a GPU), on one core and on all,
  against a full libjpeg-turbo decode of the same files alone, and nvJPEG alone on a GPU.
- One core against one core: our whole step and open_clip's train transform.
- The whole loader against open_clip's own, webdataset with torchvision, and DALI's reader, each
  with as many processes or threads. What is not installed is left out, with a message.

Every side has a process of its own; they are timed in turn, after a round that warms up: medians
with the smallest and the largest. Crops have the same distribution on all sides.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import torch
import tyro

from tessera.pipeline.crops import CropConfig
from tessera.pipeline.index import INDEX_FILE, ScanOptions, build_index
from tessera.pipeline.index.dataset import Dataset, open_dataset
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.storage import is_remote, list_shards
from tessera.report.benchmark import write_bars, write_page
from tessera.tools.benchmarks.comparison import BASELINES, compare
from tessera.tools.benchmarks.report_text import lines
from tessera.tools.benchmarks.side import Setting
from tessera.tools.benchmarks.storage import measure_storage
from tessera.tools.benchmarks.sweep import Sweep, run_sweep
from tessera.training.environment import machine, num_cores

Baseline = Literal["open_clip_transform", "open_clip", "torchvision", "dali_reader"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the data pipeline alone."""

    data: tyro.conf.Positional[str]
    """A folder of tars, a tar, or INDEX[@SELECTION]."""
    captions: str = "txt"
    """Of a folder of tars: `txt`, `lines` or `json:FIELD`, as for tools/index_shards.py."""
    batch_size: int = 64
    """Pairs in a batch."""
    image_size: int = 224
    """Side of the decoded square, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random resized crop; --crop.scale 0.9 1.0 is open_clip's, 0.4 1.0 is CLIPA's."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which patches are hidden."""
    threads: int = num_cores()
    """Threads of our whole loader, and processes or threads of the other loaders."""
    images: int = 2000
    """Images that every side makes in all counted rounds, at least."""
    repeats: int = 5
    """Counted rounds."""
    baselines: tuple[Baseline, ...] = BASELINES
    """Other pipelines to time; nothing behind it times none."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where our loader decodes and masks. Batches are handed out on a GPU wherever there is one."""
    storage: bool = True
    """Measure reading with the page cache cold and warm. Drops the shards from the page cache."""
    sweep: Sweep = field(default_factory=Sweep)
    """Settings to try one at a time with our whole loader."""
    html: Path | None = None
    """File for a page with the figures."""
    png: Path | None = None
    """File for a picture of the ladder and of the loaders."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "images", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    with opened(arguments) as (reference, dataset):
        result = measure(arguments, reference, dataset)
    print("\n".join(lines(result)))
    if arguments.html:
        write_page(result, arguments.html)
    if arguments.png:
        write_bars(result, arguments.png)
    return result


@contextmanager
def opened(arguments: Arguments) -> Iterator[tuple[str, Dataset]]:
    """The data set to measure; that of a folder of tars has an index for as long as it takes."""
    place = arguments.data
    is_index = not is_remote(place) and (Path(place.partition("@")[0]) / INDEX_FILE).is_file()
    if is_index or "@" in Path(place).name:
        yield place, open_dataset(place)
        return
    with tempfile.TemporaryDirectory(prefix="tessera-benchmark-") as folder:
        _say("indexing")
        options = ScanOptions(captions=arguments.captions, full_decode=False)
        build_index(list_shards(place), Path(folder) / "index", options=options)
        reference = str(Path(folder) / "index")
        yield reference, open_dataset(reference)


def measure(arguments: Arguments, reference: str, dataset: Dataset) -> dict[str, Any]:
    """All figures of one run.

    Raises:
        RuntimeError: one of our own sides failed.
    """
    if arguments.batch_size > dataset.num_samples:
        raise ValueError(
            f"--batch-size {arguments.batch_size} is more than the {dataset.num_samples} usable "
            f"samples of {arguments.data}; take at most so many"
        )
    setting = Setting(
        reference=reference,
        shards=tuple(record.location for record in dataset.index.shards),
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        patch_size=arguments.patch_size,
        crop=arguments.crop,
        mask=arguments.mask,
        num_workers=arguments.threads,
        device=arguments.device,
    )
    setting.loader_config()  # refuses what does not fit before anything starts
    settings = arguments.sweep.settings(setting)
    num_batches = -(-arguments.images // (arguments.repeats * arguments.batch_size))
    storage = {"left_out": "--no-storage"}
    if arguments.storage:
        _say("reading")
        storage = measure_storage(dataset, setting.loader_config(), arguments.images)
    figures = compare(
        setting,
        dataset,
        arguments.baselines,
        num_batches=num_batches,
        repeats=arguments.repeats,
        progress=_say,
    )
    swept = run_sweep(settings, num_batches=num_batches, repeats=arguments.repeats, progress=_say)
    return {
        "data": arguments.data,
        "num_samples": dataset.num_samples,
        "images_per_side": num_batches * arguments.repeats * arguments.batch_size,
        "batch_size": arguments.batch_size,
        "image_size": arguments.image_size,
        "patch_size": arguments.patch_size,
        "crop_scale": list(arguments.crop.scale),
        "mask": arguments.mask.kind,
        "mask_ratio": arguments.mask.mask_ratio,
        "threads": arguments.threads,
        "device": arguments.device,
        **figures,
        "storage": storage,
        "sweep": swept,
        "environment": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }


def _say(text: str) -> None:
    """What happens now, for who watches."""
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
