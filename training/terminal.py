"""What a run says to the terminal and to its log file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch

from training.config import TrainConfig, to_json
from training.config_differences import flatten
from training.session import Session

_OUT_OF_MEMORY = (
    "could not create a primitive",  # all that oneDNN says of it
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "Cannot allocate memory",
    "can't start new thread",
)
_LESS_MEMORY = (
    "Less is needed with a larger --accumulation N (the same batch and loss, in N chunks), with "
    "--checkpoint-blocks, or with a smaller --batch-size; the same command continues from the last "
    "checkpoint"
)


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


def failure(error: BaseException) -> str:
    """Why a run failed, in words for its user: what ran out of memory also says what needs less."""
    said = str(error) or type(error).__name__
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if out_of_memory or any(words in said for words in _OUT_OF_MEMORY):
        return f"memory ran out: {said}. {_LESS_MEMORY}"
    return said
