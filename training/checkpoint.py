"""Checkpoints: safetensors and JSON, written whole or not at all, loaded without running code.

A checkpoint is a folder `step_000001234`. Its `open_clip_model.safetensors` and
`open_clip_config.json` are what open_clip opens as `local-dir:FOLDER`; `optimizer.safetensors` and
`state.json` are what a run needs to go on. `state.json` holds the hashes of the others and is
written last, and the folder gets its name by a rename once everything in it is on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.durable import sync_folder, write_text

logger = logging.getLogger(__name__)

_FORMAT = 1
_PREFIX = "step_"
_WEIGHTS = "open_clip_model.safetensors"
_ARCHITECTURE = "open_clip_config.json"
_OPTIMIZER = "optimizer.safetensors"
_MASK = "mask.safetensors"
_STATE = "state.json"


class CheckpointError(Exception):
    """A checkpoint could not be written or is not whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One checkpoint, read and verified."""

    step: int
    """Optimiser steps done."""
    weights: dict[str, Tensor]
    """The model in open_clip's names and layouts."""
    optimizer: dict[str, Tensor]
    """Optimiser state by `kind/parameter name`."""
    state: dict[str, Any]
    """Everything else: configuration, index fingerprint, versions, seconds spent."""
    mask: dict[str, Tensor]
    """What the mask was told of the model; empty for most masks."""


def save(
    folder: Path,
    step: int,
    weights: dict[str, Tensor],
    architecture: dict[str, Any],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    mask: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint and remove those that are too old.

    Args:
        folder: holds all checkpoints of the run.
        step: optimiser steps done.
        weights: the model in open_clip's names and layouts.
        architecture: content of open_clip_config.json.
        optimizer: from `optimizer_tensors`.
        state: JSON values to store beside them.
        keep: newest checkpoints that stay.
        mask: what the mask was told of the model, if anything.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: it could not be written; earlier checkpoints are as they were.
    """
    final = folder / f"{_PREFIX}{step:09d}"
    partial = folder / f".partial_{final.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(weights, partial / _WEIGHTS)
        save_file(optimizer, partial / _OPTIMIZER)
        write_text(partial / _ARCHITECTURE, json.dumps(architecture, indent=1))
        files = [_WEIGHTS, _ARCHITECTURE, _OPTIMIZER]
        if mask:
            save_file(mask, partial / _MASK)
            files.append(_MASK)
        hashes = {name: _hash_and_sync(partial / name) for name in files}
        content = {"format": _FORMAT, "step": step, "sha256": hashes, **state}
        write_text(partial / _STATE, json.dumps(content, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(_explain(error, folder)) from error
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_latest(folder: Path) -> Checkpoint | None:
    """Read the newest whole checkpoint.

    A damaged one is passed over, with a warning, for the one before it.

    Returns:
        None if there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints and none is whole.
    """
    folders = _folders(folder)
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
            if _hash(path / name) != expected:
                raise CheckpointError(f"{path / name} is damaged: its hash is not the one stored")
        return Checkpoint(
            step=int(state["step"]),
            weights=load_file(path / _WEIGHTS),
            optimizer=load_file(path / _OPTIMIZER),
            state=state,
            mask=load_file(path / _MASK) if _MASK in state["sha256"] else {},
        )
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Per-parameter state of the optimiser as `kind/parameter name`, ready to be stored."""
    return {
        f"{kind}/{name}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put stored per-parameter state back under the parameters it belongs to."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        kind, name = full_name.split("/", 1)
        by_name.setdefault(name, {})[kind] = tensor
    numbers = {id(p): n for n, p in enumerate(_parameters_in_order(optimizer))}
    stored = optimizer.state_dict()
    stored["state"] = {
        numbers[id(parameter)]: by_name[name]
        for name, parameter in model.named_parameters()
        if name in by_name
    }
    optimizer.load_state_dict(stored)


def _parameters_in_order(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _folders(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(folder.glob(f"{_PREFIX}*"), reverse=True) if folder.is_dir() else []


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
