"""Checkpoints: safetensors and JSON, written whole or not at all, loaded without running code.

A checkpoint is a folder `step_000001234`. A CLIP's `open_clip_model.safetensors` and
`open_clip_config.json` are what open_clip opens as `local-dir:FOLDER`; `state.json` and one
safetensors file for each part of the training state (`optimizer`, `loss`, ...) are what a run
needs to go on. Tensors are whole, however many ranks wrote them, so any number can read them.
`state.json` holds the hashes of the others and is written last, and the folder gets its name by a
rename once everything in it is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tessera.pipeline.durable import sync_folder, write_text
from tessera.training.distributed import Ranks
from tessera.training.parallel import like
from tessera.training.tensor_file import save_tensors

logger = logging.getLogger(__name__)

WEIGHTS = "open_clip_model"
"""Name of the part that holds the model, in open_clip's names and layouts."""
OPTIMIZER = "optimizer"
"""Name of the part that holds the optimiser's state, by the names of `optimizer_tensors`."""
_GROUP = "group."
_FORMAT = 1
_PREFIX = "step_"
_PARTIAL = ".partial_"
_SUFFIX = ".safetensors"
_ARCHITECTURE = "open_clip_config.json"
_STATE = "state.json"


class CheckpointError(Exception):
    """A checkpoint could not be written or is not whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One checkpoint, in host memory."""

    step: int
    """Optimiser steps done."""
    parts: dict[str, dict[str, Tensor]]
    """Tensors by part and name; `OPTIMIZER` is always there, and of a CLIP `WEIGHTS`."""
    architecture: dict[str, Any]
    """Content of open_clip_config.json; empty where it is no CLIP that is trained."""
    state: dict[str, Any]
    """Everything else: configuration, fingerprints, versions, seconds spent."""

    def part(self, name: str) -> dict[str, Tensor]:
        """Tensors of a part; none if the checkpoint has no such part."""
        return self.parts.get(name, {})


class CheckpointWriter:
    """Writes checkpoints beside the training, one at a time."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Remove what a killed process left half written.

        Args:
            folder: holds all checkpoints of the run; held by this process alone.
            keep: newest checkpoints that stay.
        """
        self._folder = folder
        self._keep = keep
        # Started now: where memory has run out, Thread.start() of CPython may wait for ever.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tessera-checkpoint")
        self._pool.submit(int).result()
        self._written: Future[Path] | None = None
        remove_unfinished(folder)

    def start(self, checkpoint: Checkpoint) -> None:
        """Begin to write, once the one before is written.

        Args:
            checkpoint: its tensors must not change any more.

        Raises:
            CheckpointError: the one before could not be written.
        """
        self.wait()
        self._written = self._pool.submit(save, self._folder, checkpoint, self._keep)

    def check(self) -> None:
        """Raise what went wrong in the background; costs nothing.

        Raises:
            CheckpointError: the last checkpoint could not be written; earlier ones are untouched.
        """
        if self._written is not None and self._written.done():
            self.wait()

    def wait(self) -> None:
        """Return once nothing is being written.

        Raises:
            CheckpointError: as for `check`.
        """
        written, self._written = self._written, None
        if written is not None:
            written.result()


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written or half removed.

    Args:
        folder: holds all checkpoints of the run; held by this process alone.
    """
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint and remove those that are too old.

    Args:
        folder: holds all checkpoints of the run.
        checkpoint: what to write; parts without tensors are left out.
        keep: newest checkpoints that stay.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: it could not be written; earlier checkpoints are as they were.
    """
    final = folder / f"{_PREFIX}{checkpoint.step:09d}"
    partial = folder / f"{_PARTIAL}{final.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        hashes = _write_files(partial, checkpoint)
        content = {"format": _FORMAT, "step": checkpoint.step, "sha256": hashes}
        write_text(partial / _STATE, json.dumps(content | checkpoint.state, indent=1))
        # One of the same step, of a run that stopped right behind it, goes once this one is there.
        same = _set_aside(final)
        partial.rename(final)
        sync_folder(folder)
    except (OSError, SafetensorError, MemoryError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(_explain(error, folder)) from error
    for doomed in (same, *map(_set_aside, checkpoint_folders(folder)[keep:])):
        shutil.rmtree(doomed, ignore_errors=True)
    return final


def _set_aside(path: Path) -> Path:
    """Take a checkpoint's name away, if it is there; a kill in its removal leaves no half in it."""
    doomed = path.with_name(f"{_PARTIAL}old_{path.name}")
    with contextlib.suppress(OSError):
        path.rename(doomed)
    return doomed


def _write_files(folder: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """Everything but state.json; returns the hashes by file name."""
    write_text(folder / _ARCHITECTURE, json.dumps(checkpoint.architecture, indent=1))
    files = [_ARCHITECTURE]
    for name, tensors in checkpoint.parts.items():
        if tensors:
            save_tensors(tensors, folder / f"{name}{_SUFFIX}")
            files.append(f"{name}{_SUFFIX}")
    return {name: _hash_and_sync(folder / name) for name in files}


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first; none if the folder is not there."""
    return sorted(folder.glob(f"{_PREFIX}*"), reverse=True) if folder.is_dir() else []


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder, by its name."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def load_latest(folder: Path) -> Checkpoint | None:
    """Read the newest whole checkpoint.

    A damaged one is passed over, with a warning, for the one before it.

    Returns:
        None if there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints and none is whole.
    """
    folders = checkpoint_folders(folder)
    for path in folders:
        try:
            return load(path)
        except CheckpointError as error:
            logger.warning("%s; trying the one before it", error)
    if folders:
        raise CheckpointError(
            f"none of the {len(folders)} checkpoints under {folder} is whole: move them away to "
            "begin again"
        )
    return None


def load_on_all(folder: Path, ranks: Ranks) -> Checkpoint | None:
    """Let rank 0 read the newest whole checkpoint, and give it to all.

    Only rank 0 needs to see the folder, and all ranks go on from the same checkpoint.

    Raises:
        CheckpointError: as for `load_latest`, on rank 0.
    """
    found = None

    def read() -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        nonlocal found
        found = load_latest(folder)
        return (found.step, found.architecture, found.state) if found else None

    header = ranks.on_main(read)
    if header is None:
        return None
    own = found.parts if found else {}
    flat = {f"{part}/{name}": t for part, tensors in own.items() for name, t in tensors.items()}
    parts: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in ranks.broadcast(flat).items():
        part, name = full_name.split("/", 1)
        parts.setdefault(part, {})[name] = tensor
    step, architecture, state = header
    return Checkpoint(step=step, parts=parts, architecture=architecture, state=state)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder and verify its files against their hashes.

    Raises:
        CheckpointError: a file is missing, damaged or of another format.
    """
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if state.get("format") != _FORMAT:
            raise CheckpointError(f"{path} has format {state.get('format')}, not {_FORMAT}")
        for name, expected in state["sha256"].items():
            if Path(name).name != name:
                raise CheckpointError(f"{path} names {name!r}, which is no file of its own")
            if _hash(path / name) != expected:
                raise CheckpointError(f"{path / name} is damaged: its hash is not the one stored")
        names = [name.removesuffix(_SUFFIX) for name in state["sha256"] if name.endswith(_SUFFIX)]
        return Checkpoint(
            step=int(state["step"]),
            parts={name: load_file(path / f"{name}{_SUFFIX}") for name in names},
            architecture=json.loads((path / _ARCHITECTURE).read_text(encoding="utf-8")),
            state=state,
        )
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError,
            RecursionError, SafetensorError) as error:  # fmt: skip
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the optimiser by name, on each rank its part.

    Returns:
        `kind/parameter name`; what a group counts for all its parameters (LAMB's steps) is
        `kind/group.N`.
    """
    groups = {
        f"{kind}/{_GROUP}{number}": value
        for number, group in enumerate(optimizer.param_groups)
        for kind, value in group.items()
        if isinstance(value, Tensor)
    }
    return groups | {
        f"{kind}/{name}": value.detach()
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put stored state back under the parameters and groups it belongs to.

    Args:
        model: on one rank or spread over several.
        optimizer: of its parameters.
        tensors: whole, by the names of `optimizer_tensors`.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        kind, name = full_name.split("/", 1)
        by_name.setdefault(name, {})[kind] = tensor
    numbers = {id(p): n for n, p in enumerate(_parameters_in_order(optimizer))}
    stored = optimizer.state_dict()
    stored["state"] = {
        numbers[id(parameter)]: {
            kind: tensor if kind == "step" else like(tensor, parameter)
            for kind, tensor in by_name[name].items()
        }
        for name, parameter in model.named_parameters()
        if name in by_name
    }
    for number, group in enumerate(stored["param_groups"]):
        group |= by_name.get(f"{_GROUP}{number}", {})
    optimizer.load_state_dict(stored)


def _parameters_in_order(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_and_sync(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _hash(path)


def _explain(error: Exception, folder: Path) -> str:
    kept = "earlier checkpoints are untouched; make room or change run_dir, then run it again"
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space" in str(error):
        return f"the disk is full: no checkpoint could be written under {folder}; {kept}"
    return f"no checkpoint could be written under {folder} ({error}); {kept}"
