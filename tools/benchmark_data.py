"""How fast do JPEG shards become packed batches, and is that faster than open_clip's transform?

    python tools/benchmark_data.py INDEX --image-size 224 --patch-size 16

Two questions, answered in one run on the same files. First the loader as training uses it, with
all its threads: pairs/s, and where its time goes. Then one core against one core: our decode, mask
and pack, and open_clip's train transform (PIL decode, random resized crop, to float, normalise),
in turn, several times, medians with spread. Crops follow the same distribution on both sides.

Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import io
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from pipeline import Loader, LoaderConfig, open_loader
from pipeline.crops import CropConfig
from pipeline.masking import MaskConfig
from pipeline.reader import ShardReader
from training.environment import machine, num_cores


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the data pipeline alone."""

    index: tyro.conf.Positional[str]
    """Folder of an index, written by tools/index_shards.py, or INDEX@SELECTION."""
    batch_size: int = 64
    """Pairs in a batch."""
    image_size: int = 224
    """Side of the decoded square, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random resized crop."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which patches are hidden."""
    threads: int = num_cores()
    """Threads of the whole loader."""
    batches: int = 20
    """Batches of each timed part."""
    repeats: int = 5
    """How often the two sides are timed in turn."""


def main() -> int:
    """Run the tool; returns its exit status."""
    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        result = measure(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(result)
    print(json.dumps(result | {"environment": machine(torch.device("cpu"))}))
    return 0


def measure(arguments: Arguments) -> dict[str, object]:
    """All figures of one run."""
    config = LoaderConfig(
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        patch_size=arguments.patch_size,
        crop=arguments.crop,
        mask=arguments.mask,
        num_threads=arguments.threads,
    )
    with open_loader(arguments.index, config) as loader:
        whole = time_loader(loader, arguments.batches)
    torch.set_num_threads(1)
    with open_loader(arguments.index, replace(config, num_threads=1)) as loader:
        one_core = compare_on_one_core(loader, arguments)
    return {
        "index": arguments.index,
        "image_size": arguments.image_size,
        "crop_scale": list(arguments.crop.scale),
        "mask": arguments.mask.kind,
        "mask_ratio": arguments.mask.mask_ratio,
        **whole,
        **one_core,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def time_loader(loader: Loader, num_batches: int) -> dict[str, object]:
    """The loader with its threads: rate, microseconds of work a pair by stage, bytes a pair."""
    for _ in range(2 + loader.config.prefetch * 2):  # what was made ahead does not count
        next(loader)
    start = time.perf_counter()
    num_bytes = sum(batch.num_bytes for batch in islice(loader, num_batches))
    seconds = time.perf_counter() - start
    num_pairs = num_batches * loader.config.batch_size
    float_image = 3 * 4 * loader.config.image_size**2
    return {
        "loader_pairs_per_s": num_pairs / seconds,
        "loader_threads": loader.config.num_threads,
        "stage_us_per_pair": {
            name: 1e6 * stage.busy_s / stage.num_samples
            for name, stage in loader.stats.stages().items()
        },
        "bottleneck": loader.stats.bottleneck(),
        "bytes_per_pair": num_bytes / num_pairs,
        "open_clip_bytes_per_pair": float_image + 8 * loader.config.context_length,
    }


def compare_on_one_core(loader: Loader, arguments: Arguments) -> dict[str, object]:
    """Our synchronous path and open_clip's transform, in turn, on one pinned core."""
    from open_clip.transform import image_transform

    transform = image_transform(
        arguments.image_size,
        is_train=True,
        aug_cfg={"scale": arguments.crop.scale, "ratio": arguments.crop.ratio},
    )
    assert not isinstance(transform, tuple)  # one for training, asked for alone
    reader = ShardReader(loader.index, 1)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    rates: dict[str, list[float]] = {"ours": [], "open_clip": []}

    def ours(step: int) -> None:
        loader.assemble(step)

    ids = loader.dataset.of_samples(np.arange(loader.index.num_samples))

    def theirs(step: int) -> None:
        places = np.arange(step * arguments.batch_size, (step + 1) * arguments.batch_size)
        for data in reader.read(ids[places % len(ids)]):
            assert isinstance(data, bytes)
            transform(Image.open(io.BytesIO(data)).convert("RGB"))

    sides: list[tuple[str, Callable[[int], None]]] = [("ours", ours), ("open_clip", theirs)]
    for repeat in range(arguments.repeats + 1):
        for name, work in sides if repeat % 2 else reversed(sides):
            rate = _rate(work, repeat, arguments)
            if repeat:  # the first round warms up
                rates[name].append(rate)
    os.sched_setaffinity(0, cores)
    reader.close()
    ratios = [a / b for a, b in zip(rates["ours"], rates["open_clip"], strict=True)]
    return {
        "one_core_pairs_per_s": _spread(rates["ours"]),
        "one_core_open_clip_pairs_per_s": _spread(rates["open_clip"]),
        "one_core_ratio": _spread(ratios),
    }


def show(result: dict[str, object]) -> None:
    """Print the figures for a person."""
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number:,.2f}" for key, number in value.items())
        elif isinstance(value, float):
            value = f"{value:,.1f}"
        print(f"{name:32} {value}")


def _rate(work: Callable[[int], None], repeat: int, arguments: Arguments) -> float:
    num_batches = max(1, arguments.batches // 4)
    start = time.perf_counter()
    for number in range(num_batches):
        work(repeat * num_batches + number)
    return num_batches * arguments.batch_size / (time.perf_counter() - start)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    sys.exit(main())
