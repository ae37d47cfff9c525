"""How fast does an index of millions open, and what does it cost to know what a step consists of?

    python tools/benchmark_large_index.py --samples 12400000

Writes the tables of an index whose shards do not exist (some 110 bytes a sample) into a temporary
folder, opens it in a process of its own, and works out random steps in both orders: the samples
alone, and with their crop windows, captions and mask noise. The orders are measured a second time
at a size of which no table exists. Removes everything.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
import pyarrow as pa
import torch
import tyro

from tessera.pipeline import index as layout
from tessera.pipeline.crops import CropConfig
from tessera.pipeline.index import ScanOptions, open_index
from tessera.pipeline.index.arrow_file import write_batch
from tessera.pipeline.index.caption_mix import CaptionMix
from tessera.pipeline.index.captions import CAPTION_SCHEMA
from tessera.pipeline.order import Order, SampleOrder
from tessera.pipeline.window_order import WindowOrder
from tessera.tools.benchmark_index import private_mib

OrderKind = Literal["global", "window"]
_TEXT = b"a photo of a thing"
_NUM_TOKENS = 12
_WINDOW_SHARDS = 16
_NUM_PATCHES = 196
_ORDERS: tuple[OrderKind, ...] = ("global", "window")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Measure an index that is too large to be made from shards in passing."""

    samples: int = 12_400_000
    """Samples of the index that is written."""
    order_samples: int = 400_000_000
    """Samples of the orders that are measured without an index."""
    samples_per_shard: int = 10_000
    """Samples of a shard."""
    batch_size: int = 1024
    """Pairs in a global batch."""
    steps: int = 200
    """Random steps that are timed."""
    folder: Path | None = None
    """Where the temporary folder is made; the system's choice if not given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    if min(arguments.samples, arguments.order_samples) < arguments.batch_size:
        raise ValueError("--samples and --order-samples are at least --batch-size")
    result = measure(arguments)
    for name, value in result.items():
        print(f"{name:38} {value:,.3f}" if isinstance(value, float) else f"{name:38} {value:,}")
    return result


def measure(arguments: Arguments) -> dict[str, Any]:
    """All figures of one run.

    Raises:
        RuntimeError: a measuring process failed.
    """
    with tempfile.TemporaryDirectory(prefix="tessera-large-", dir=arguments.folder) as folder:
        index_dir = Path(folder) / "index"
        write_index(index_dir, arguments.samples, arguments.samples_per_shard)
        figures: dict[str, Any] = {
            "num_samples": arguments.samples,
            "batch_size": arguments.batch_size,
            "tables_bytes": sum(path.stat().st_size for path in index_dir.rglob("*.arrow")),
        }
        figures |= _in_process(_opening, index_dir)
        for kind in _ORDERS:
            figures |= _in_process(_planning, arguments, index_dir, kind)
    figures["order_num_samples"] = arguments.order_samples
    for kind in _ORDERS:
        figures |= _in_process(_ordering, arguments, kind)
    return figures


def write_index(directory: Path, num_samples: int, samples_per_shard: int) -> None:
    """Write tables of random sizes, one caption a sample, and the shards that they speak of."""
    (directory / layout.CAPTIONS_DIR).mkdir(parents=True)
    draw = np.random.default_rng(0)
    rows = np.arange(num_samples)
    sizes = np.bincount(rows // samples_per_shard)
    columns = {
        "key": _strings(np.char.zfill(rows.astype("U10"), 10).astype("S10").tobytes(), 10),
        "shard": pa.array((rows // samples_per_shard).astype(np.int32)),
        "offset": pa.array(rows % samples_per_shard * 65536),
        **{
            name: pa.array(draw.integers(low, high, num_samples, dtype=np.int32))
            for name, low, high in (("size", 2_000, 60_000), ("width", 100, 900),
                                    ("height", 100, 900), ("label", -1, 0))
        },
        "plain": pa.array(np.ones(num_samples, np.int8)),
    }  # fmt: skip
    write_batch(
        directory / layout.SAMPLES_FILE,
        pa.RecordBatch.from_arrays(list(columns.values()), schema=layout.SAMPLE_SCHEMA),
    )
    tokens = pa.LargeListArray.from_arrays(
        np.arange(num_samples + 1) * _NUM_TOKENS,
        pa.array(draw.integers(1, 49_000, num_samples * _NUM_TOKENS, dtype=np.uint16)),
        CAPTION_SCHEMA.field("tokens").type,
    )
    texts = _strings(_TEXT * num_samples, len(_TEXT))
    captions = f"{layout.CAPTIONS_DIR}/{layout.DEFAULT_SOURCE}.arrow"
    write_batch(
        directory / captions,
        pa.RecordBatch.from_arrays([texts, tokens, pa.array(rows)], schema=CAPTION_SCHEMA),
    )
    none = [pa.array([], pa.large_string())] * len(layout.REJECTED_SCHEMA)
    write_batch(
        directory / layout.REJECTED_FILE,
        pa.RecordBatch.from_arrays(none, schema=layout.REJECTED_SCHEMA),
    )
    manifest = {
        "format_version": layout.FORMAT_VERSION,
        "fingerprint": "0" * 64,
        "tokenizer": "clip",
        "captions": "txt",
        "options": ScanOptions().to_json(),
        "num_samples": num_samples,
        "rejections": {},
        "files": {
            name: (directory / name).stat().st_size
            for name in (layout.SAMPLES_FILE, layout.REJECTED_FILE, captions)
        },
        "shards": [
            {"location": f"shards/{number:06d}.tar", "size_bytes": 1, "mtime_ns": 0, "version": "",
             "head_tail_crc32": 0, "num_samples": size}
            for number, size in enumerate(sizes.tolist())
        ],
    }  # fmt: skip
    (directory / layout.INDEX_FILE).write_text(json.dumps(manifest), encoding="utf-8")


def _strings(data: bytes, length: int) -> pa.LargeStringArray:
    """Strings that are all of one length."""
    offsets = np.arange(len(data) // length + 1, dtype=np.int64) * length
    return pa.LargeStringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)
    )


def _opening(index_dir: Path) -> dict[str, float]:
    before, start = private_mib(), time.perf_counter()
    index = open_index(index_dir)
    captions = index.captions()
    seconds = time.perf_counter() - start
    del captions
    return {"open_s": seconds, "open_private_mib": private_mib() - before}


def _planning(arguments: Arguments, index_dir: Path, kind: OrderKind) -> dict[str, float]:
    # Not at the top: it brings torch, which the other measurements need not wait for.
    from tessera.pipeline.plan import TrainingPlan

    index = open_index(index_dir)
    before = private_mib()
    captions = CaptionMix(index, ((layout.DEFAULT_SOURCE, 1.0),))
    order: Order = SampleOrder(index.num_samples, 0)
    if kind == "window":
        order = WindowOrder(index.shard_sizes, 0, _WINDOW_SHARDS)
    plan = TrainingPlan(
        index=index,
        captions=captions,
        order=order,
        crop=CropConfig(),
        batch_size=arguments.batch_size,
        rank=0,
        world_size=1,
    )

    def whole(step: int) -> None:
        visits = plan.visits(step)
        plan.windows(visits)
        plan.noise(visits, _NUM_PATCHES, torch.device("cpu"))
        captions.pack(plan.draw_captions(visits).rows, 77, np.empty((arguments.batch_size, 0)))

    num_steps = 10 * index.num_samples // arguments.batch_size
    found = _of_steps(f"{kind}_order", plan.visits, num_steps, arguments.steps)
    found |= _of_steps(f"{kind}_plan", whole, num_steps, arguments.steps)
    return found | {f"{kind}_plan_private_mib": private_mib() - before}


def _ordering(arguments: Arguments, kind: OrderKind) -> dict[str, float]:
    before = private_mib()
    num_samples, per_shard = arguments.order_samples, arguments.samples_per_shard
    order: Order = SampleOrder(num_samples, 0)
    if kind == "window":
        order = WindowOrder(np.full(num_samples // per_shard, per_shard), 0, _WINDOW_SHARDS)
    found = _of_steps(
        f"large_{kind}_order",
        lambda step: order.visits(step, arguments.batch_size),
        10 * num_samples // arguments.batch_size,
        arguments.steps,
    )
    return found | {f"large_{kind}_order_private_mib": private_mib() - before}


def _of_steps(
    name: str, work: Callable[[int], object], num_steps: int, count: int
) -> dict[str, float]:
    """Median and largest milliseconds over random steps; the first one is not counted."""
    steps = np.random.default_rng(1).integers(0, num_steps, count + 1).tolist()
    took = []
    for step in steps:
        start = time.perf_counter()
        work(step)
        took.append(1e3 * (time.perf_counter() - start))
    return {f"{name}_ms": float(np.median(took[1:])), f"{name}_largest_ms": max(took[1:])}


def _in_process(work: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """What some work finds in a new process, whose memory is its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(work, arguments)


if __name__ == "__main__":
    sys.exit(main())
