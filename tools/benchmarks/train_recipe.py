"""Real steps of a recipe: first with the live loader, then with one batch that is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from tessera.pipeline import PackedBatch
from tessera.training.config import TrainConfig
from tessera.training.environment import machine
from tessera.training.metrics import memory_bytes
from tessera.training.opening import open_session
from tessera.training.run_folder import RunFolder
from tessera.training.session import Session
from tessera.training.timeline import Timeline


def measure(config: TrainConfig, num_steps: int, num_warmup: int) -> dict[str, object]:
    """Time live and replayed steps of a recipe."""
    with TemporaryDirectory() as folder:
        config = replace(config, run_dir=folder)
        session = open_session(config, RunFolder(Path(folder)), Timeline())
        try:
            live, waits = _time_steps(session, partial(_next, session), num_steps, num_warmup)
            kept = _next(session)
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


def _next(session: Session) -> PackedBatch:
    session.refresh_mask()
    return next(session.loader)


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
        session.update(batch)
        if session.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[num_warmup:], waits[num_warmup:]
