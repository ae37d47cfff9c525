"""How fast does a recipe train, and how much of that is waiting for data?

    python tools/benchmark_train.py flickr8k --steps 20

Takes real steps of a recipe, first with the live loader, then again and again with one batch that
is kept: the second rate is what training could reach if data cost nothing. Nothing is written.

Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from pipeline import PackedBatch
from recipes import find_recipe
from training.command_line import parse
from training.config import TrainConfig
from training.environment import machine
from training.metrics import memory_bytes
from training.run_folder import RunFolder
from training.session import Session, open_session
from training.step import train_step
from training.timeline import Timeline


def main() -> int:
    """Run the tool; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All further words are for the recipe, as train.py takes them.",
    )
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each part")
    parser.add_argument("--warmup", type=int, default=3, help="steps before that, not counted")
    arguments, words = parser.parse_known_args()
    try:
        config = parse(words, lambda name: find_recipe(name).build(), "").config
        find_recipe(config.recipe).prepare(config)
        result = measure(config, arguments.steps, arguments.warmup)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in result.items():
        print(f"{name:28} {value:,.3f}" if isinstance(value, float) else f"{name:28} {value}")
    print(json.dumps(result))
    return 0


def measure(config: TrainConfig, num_steps: int, num_warmup: int) -> dict[str, object]:
    """Time live and replayed steps of a recipe."""
    with TemporaryDirectory() as folder:
        config = replace(config, run_dir=folder)
        session = open_session(config, RunFolder(Path(folder)), Timeline())
        try:
            live, waits = _time_steps(session, lambda: next(session.loader), num_steps, num_warmup)
            kept = next(session.loader)
            session.loader.seek(0)  # ends the threads, which would go on decoding
            session.timeline.seconds.clear()
            replayed, _ = _time_steps(session, lambda: kept, num_steps, num_warmup)
        finally:
            session.close()
    total = sum(session.timeline.seconds.values())
    return {
        "recipe": config.recipe,
        "model": config.model,
        "mask": config.mask.kind,
        "mask_ratio": config.mask.mask_ratio,
        "batch_size": config.batch_size,
        "pairs_per_s": config.batch_size / median(live),
        "replayed_pairs_per_s": config.batch_size / median(replayed),
        "step_s_min_max": [min(live), max(live)],
        "data_wait_share": sum(waits) / sum(live),
        "step_split": {k: v / total for k, v in session.timeline.seconds.items()},
        "peak_memory_bytes": memory_bytes(session.device),
        "environment": machine(session.device),
    }


def _time_steps(
    session: Session, next_batch: Callable[[], PackedBatch], num_steps: int, num_warmup: int
) -> tuple[list[float], list[float]]:
    """Seconds of each step, and seconds of it that went into getting the batch."""
    seconds, waits = [], []
    for _ in range(num_warmup + num_steps):
        start = time.perf_counter()
        batch = next_batch().to(session.device)
        waits.append(time.perf_counter() - start)
        session.start_step()
        train_step(session.clip, session.optimizer, batch, session.config, session.timeline)
        if session.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[num_warmup:], waits[num_warmup:]


if __name__ == "__main__":
    sys.exit(main())
