"""A run while it lasts: everything that is open, and how it gets onto the disk and back."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model import Clip, build_clip, open_clip_weights
from model.config import ClipConfig, clip_config
from pipeline import Loader, LoaderConfig, open_loader
from pipeline.patches import CLIP_MEAN, CLIP_STD
from training import checkpoint
from training.checkpoint import Checkpoint, CheckpointError
from training.config import TrainConfig, to_json
from training.environment import versions
from training.metrics import StepLog, StepRecord
from training.optim import build_optimizer, learning_rate, set_learning_rate
from training.overlap import overlap_warnings
from training.run_folder import RunFolder
from training.timeline import Timeline

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Session:
    """What a training process holds between opening and closing a run."""

    config: TrainConfig
    """Of the run."""
    folder: RunFolder
    """Where everything is written."""
    device: torch.device
    """Where the model is."""
    clip: Clip
    """The model."""
    optimizer: torch.optim.Optimizer
    """Its optimiser."""
    loader: Loader
    """Training batches, standing at `step`."""
    log: StepLog
    """Steps not yet written."""
    timeline: Timeline
    """Seconds by activity, earlier processes of this run included."""
    step: int
    """Optimiser steps done."""
    mask_weights: dict[str, Tensor] = field(default_factory=dict)
    """Patch projection and positions that the mask goes by; empty if it compares pixels only."""
    mask_step: int = 0
    """Steps done when they were taken."""

    def refresh_mask(self) -> None:
        """Hand the current patch projection to a mask that wants it, at fixed steps."""
        mask = self.config.mask
        if mask.uses_embedding and self.step % mask.embedding_every == 0:
            tower = self.clip.image
            self.mask_weights = {
                "weight": tower.patch_embed.weight.detach().float().cpu().clone(),
                "positions": tower.positional_embedding[1:].detach().float().cpu().clone(),
            }
            self.mask_step = self.step
            self.loader.set_patch_embedding(**self.mask_weights, step=self.step)

    def start_step(self) -> float:
        """Set this step's learning rate and return it."""
        samples = (self.step + 1) * self.config.batch_size
        rate = learning_rate(samples, self.config.total_samples, self.config.optim)
        set_learning_rate(self.optimizer, rate)
        return rate

    def save(self) -> list[StepRecord]:
        """Write the pending steps, then a checkpoint.

        Returns:
            The steps that were pending.

        Raises:
            CheckpointError: it could not be written; earlier ones are untouched.
            NonFiniteLossError: a loss was not finite; nothing is saved then.
        """
        records = self.log.flush()
        with self.timeline.during("checkpoints"):
            checkpoint.save(
                self.folder.checkpoints,
                self.step,
                weights=_stored(open_clip_weights.dump(self.clip)),
                architecture=_architecture(self.clip.config),
                optimizer=checkpoint.optimizer_tensors(self.clip, self.optimizer),
                state=self._state(),
                keep=self.config.keep_checkpoints,
                mask=self.mask_weights,
            )
        return records

    def close(self) -> None:
        """End the loader's threads."""
        self.loader.close()

    def _state(self) -> dict[str, Any]:
        return {
            "samples": self.step * self.config.batch_size,
            "index_fingerprint": self.loader.index.fingerprint,
            "selection_fingerprint": self.loader.dataset.selection_fingerprint,
            "config": to_json(self.config),
            "mask_step": self.mask_step,
            "seconds": self.timeline.seconds,
            "num_replaced": self.loader.stats.num_replaced,
            "versions": versions(),
        }


def open_session(config: TrainConfig, folder: RunFolder, timeline: Timeline) -> Session:
    """Open the data, build the model, and go on from the newest checkpoint if there is one.

    Args:
        config: of the run.
        folder: already claimed for this configuration.
        timeline: of this process so far; what the checkpoint knows is added to it.

    Raises:
        CheckpointError: no checkpoint in the folder is whole, or it belongs to other data.
        FileNotFoundError: the index or a shard is missing.
        ValueError: the model is unknown, or the data do not fit the configuration.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = torch.device(_device_name(config))
    architecture = clip_config(config.model)
    found = checkpoint.load_latest(folder.checkpoints)
    loader = open_loader(config.data.train, loader_config(config, architecture))
    for line in overlap_warnings(loader.dataset, config.evaluation):
        logger.warning("%s", line)
    with timeline.during("building the model"):
        torch.manual_seed(config.seed)
        clip = build_clip(architecture)
        if found:
            _check_same_data(found, loader)
            open_clip_weights.load(clip, found.weights)
        clip.to(device)
        optimizer = build_optimizer(clip, config.optim)
        if found:
            checkpoint.restore_optimizer(clip, optimizer, found.optimizer)
    step = found.step if found else 0
    for activity, seconds in (found.state["seconds"] if found else {}).items():
        timeline.add(activity, seconds)
    loader.seek(step)
    mask_weights = found.mask if found else {}
    mask_step = found.state.get("mask_step", 0) if found else 0
    if mask_weights:
        loader.set_patch_embedding(**mask_weights, step=mask_step)
    return Session(
        config=config,
        folder=folder,
        device=device,
        clip=clip,
        optimizer=optimizer,
        loader=loader,
        log=StepLog(folder.metrics, resumed_step=step),
        timeline=timeline,
        step=step,
        mask_weights=mask_weights,
        mask_step=mask_step,
    )


def loader_config(config: TrainConfig, architecture: ClipConfig) -> LoaderConfig:
    """The pipeline's part of a run: its own settings and the sizes that the model dictates."""
    return LoaderConfig(
        batch_size=config.batch_size,
        image_size=architecture.vision.image_size,
        patch_size=architecture.vision.patch_size,
        context_length=architecture.text.context_length,
        seed=config.seed,
        caption_source=config.data.caption_source,
        crop=config.data.crop,
        mask=config.mask,
        augment=config.data.augment,
        num_steps=config.num_steps,
        decoder=config.data.decoder,
        device=config.data.device,
        order=config.data.order,
        window_shards=config.data.window_shards,
        cache=config.data.cache,
        num_threads=config.data.threads,
        prefetch=config.data.prefetch,
    )


def _device_name(config: TrainConfig) -> str:
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu or auto")
    return config.device


def _check_same_data(found: Checkpoint, loader: Loader) -> None:
    pairs = {
        "index": (found.state["index_fingerprint"], loader.index.fingerprint),
        "selection": (
            found.state.get("selection_fingerprint"),  # older checkpoints knew no selections
            loader.dataset.selection_fingerprint,
        ),
    }
    for what, (before, now) in pairs.items():
        if before != now:
            was, found_now = ((name or "of all samples")[:16] for name in (before, now))
            raise CheckpointError(
                f"the checkpoint of step {found.step} was trained on the {what} {was}, but that of "
                f"{loader.index.directory} is {found_now}: its order of samples cannot go on. "
                f"Restore that {what}, or begin again with --restart"
            )


def _stored(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in weights.items()}


def _architecture(config: ClipConfig) -> dict[str, Any]:
    """Content of open_clip_config.json, as open_clip's `local-dir:` models have it."""
    return {
        "model_cfg": open_clip_weights.open_clip_config(config),
        "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
    }
