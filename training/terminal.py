"""What a run says to the terminal and to its log file."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tessera.pipeline.printable import message_of
from tessera.training.command_line import with_options
from tessera.training.config import TrainConfig, to_json
from tessera.training.config_differences import flatten
from tessera.training.environment import processes_here
from tessera.training.session import Session

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
    logging.raiseExceptions = False  # a closed pipe ends no training, and is no traceback
    level = logging.WARNING if rank else logging.INFO
    logging.basicConfig(level=level, handlers=handlers, force=True)


def next_commands(config: TrainConfig, argv: Sequence[str], checkpoint: Path) -> dict[str, str]:
    """Commands worth trying after this run, by what they are for, quoted for a shell.

    Args:
        config: of the run.
        argv: words that started it; the comparison repeats them with another mask.
        checkpoint: its last one.
    """
    kind = "random" if config.mask.kind == "cluster" else "cluster"
    changes = {"--mask.kind": kind, "--run-dir": f"{config.run_dir}-{kind}"}
    measured = (
        *config.evaluation.retrieval,
        *config.evaluation.zero_shot,
        config.data.train_references[0],
    )
    start = ["torchrun", "--nproc-per-node", str(processes_here())]
    program = [*(start if processes_here() > 1 else ["python"]), "train.py"]
    image_only = bool(config.text_side.embeddings)
    form = "open_clip-image" if image_only else "open_clip"
    target = f"{config.run_dir}-open_clip{'.safetensors' if image_only else ''}"
    tools = {
        "search": ["search.py", config.run_dir, measured[0], "--query", "a red heart"],
        "evaluate": ["evaluate.py", config.run_dir, "--retrieval", measured[0]],
        "export": ["export.py", str(checkpoint), "--format", form, "--out", target],
    }
    found = {"compare": shlex.join([*program, *with_options(argv, changes)])}
    return found | {
        name: shlex.join(["python", f"tools/{tool}", *words])
        for name, (tool, *words) in tools.items()
    }


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
    said = message_of(error)
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if out_of_memory or any(words in said for words in _OUT_OF_MEMORY):
        return f"memory ran out: {said}. {_LESS_MEMORY}"
    return said
