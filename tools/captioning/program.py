"""Progress and report of the programs that make captions, and how they end."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from tessera.pipeline.index.dataset import Dataset
from tessera.tools import program
from tessera.tools.captioning.engine import Backend, import_vllm
from tessera.tools.captioning.output import CaptionFile
from tessera.tools.captioning.rounds import Captioner, caption_all

_SECONDS_BETWEEN_LINES = 60


def run_program(
    work: Callable[[list[str]], Mapping[str, Any] | None], argv: Sequence[str] | None = None
) -> int:
    """Run a program of captions; work that was stopped is taken up by the same command.

    Returns:
        The exit status.
    """

    def explained(words: list[str]) -> Mapping[str, Any] | None:
        try:
            return work(words)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"{error}\ntake a smaller --batch-size; the same command resumes"
            ) from error

    return program.run(explained, argv, stopped="stopped; the same command resumes here")


def caption_dataset(
    dataset: Dataset, captioner: Captioner, output: CaptionFile, retries: int
) -> dict[str, Any]:
    """Caption what is left of a data set, with progress, and print what became of it."""
    start, num_before = time.perf_counter(), output.num_done
    # Where nobody watches, a log file gets a line a minute.
    interval = 0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    with tqdm(
        total=dataset.num_samples, initial=num_before, unit=" captions", mininterval=interval
    ) as bar:
        num_retried = caption_all(dataset, captioner, output, retries, bar.update)
    seconds = time.perf_counter() - start
    num_written = dataset.num_samples - output.counts.total()
    if num_before:
        print(f"taken up   after {num_before:,} samples")
    print(f"captions   {num_written:,} of {dataset.num_samples:,} samples have a new one")
    for fault, count in sorted(output.counts.items()):
        print(f"           {count:,} keep the original: {fault}")
    print(f"retries    {num_retried:,}")
    print(f"written    {output.path}")
    print(f"next       python tools/add_captions.py {dataset.index.directory} NAME {output.path}")
    return {
        "out": str(output.path),
        "num_samples": dataset.num_samples,
        "num_captions": num_written,
        "without": dict(sorted(output.counts.items())),
        "num_retried": num_retried,
        "num_done_before": num_before,
        "seconds": round(seconds, 3),
    }


def data_identity(dataset: Dataset) -> dict[str, Any]:
    """Which samples a run is about."""
    return {"index": dataset.index.fingerprint, "selection": dataset.selection_fingerprint}


def environment(
    device: torch.device, batch_size: int, backend: Backend = "transformers"
) -> dict[str, Any]:
    """What may change a sampled token without being a setting of the run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        **({"vllm": import_vllm().__version__} if backend == "vllm" else {}),
        "device": f"{device} {name}".strip(),
        "batch_size": batch_size,
    }
