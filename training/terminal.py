"""What a run says to the terminal and to its log file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from training.config import TrainConfig, to_json
from training.config_differences import flatten
from training.session import Session


def set_up_logging(path: Path | None = None, rank: int = 0) -> None:
    """Rank 0: from INFO up to the terminal, and with times to the run's file; others: warnings."""
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(logging.Formatter(f"rank {rank}: %(message)s" if rank else "%(message)s"))
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    level = logging.WARNING if rank else logging.INFO
    logging.basicConfig(level=level, handlers=handlers, force=True)


def comparison(config: TrainConfig) -> str:
    """A command worth trying after this run: the same samples under another mask."""
    kind = "random" if config.mask.kind == "cluster" else "cluster"
    return f"python train.py {config.recipe} --mask.kind {kind} --run-dir {config.run_dir}-{kind}"


def brief(session: Session) -> dict[str, object]:
    """The few fields that say which run this is."""
    fields = flatten(to_json(session.config))
    names = ("recipe", "model", "mask.kind", "mask.mask_ratio", "batch_size", "seed")
    return {name: fields[name] for name in names} | {
        "device": session.device,
        "from step": session.step,
    }
