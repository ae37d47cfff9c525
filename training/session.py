"""A run while it lasts: everything that is open, and how it gets onto the disk and back."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.model import Clip, open_clip_weights
from tessera.model.config import ClipConfig
from tessera.model.lora import lora_state, merged_state
from tessera.model.losses import ContrastiveLoss, distillation_loss
from tessera.model.losses.ranks import Ranks as LossRanks
from tessera.model.losses.same_caption import caption_keys, repeated_share
from tessera.model.open_clip_config import preprocess_config
from tessera.model.own_tokens import own_tokens
from tessera.pipeline import Loader, PackedBatch
from tessera.training import checkpoint
from tessera.training.accumulation import Encoded, equal_chunks, split
from tessera.training.bad_batch import write_bad_batch
from tessera.training.checkpoint import Checkpoint, CheckpointWriter
from tessera.training.config import TrainConfig, to_json
from tessera.training.decoding import decode_device
from tessera.training.distributed import Ranks
from tessera.training.ema import WeightAverage
from tessera.training.environment import versions
from tessera.training.health import Health
from tessera.training.metrics import DEVICE, NonFiniteLossError, StepLog, StepRecord
from tessera.training.optim import set_learning_rate
from tessera.training.parallel import state_on_host, whole, whole_clip
from tessera.training.precision import Precision
from tessera.training.run_folder import RunFolder
from tessera.training.sample_ids import SampleIdLog
from tessera.training.schedule import learning_rate
from tessera.training.stages import Stage
from tessera.training.step import train_step
from tessera.training.timeline import Timeline
from tessera.training.watch import Watcher
from tessera.training.watch_steps import SlowSteps, StepClock

logger = logging.getLogger(__name__)

EMA = "ema"
"""Part of a checkpoint that holds the average of the weights, in open_clip's names."""
LOSS = "loss"
"""Part of a checkpoint that holds the loss's own state."""
LORA = "lora"
"""Part of a checkpoint that holds low-rank updates and the weights below them."""
MASK = "mask"
"""Part of a checkpoint that holds what the mask was told of the model."""


@dataclass(kw_only=True, slots=True)
class Session:
    """What a training process holds between opening and closing a run."""

    run_config: TrainConfig
    """Of the whole run."""
    stage: Stage
    """The part of the run that is trained."""
    folder: RunFolder
    """Where rank 0 writes everything."""
    ranks: Ranks
    """This process among those of the run."""
    device: torch.device
    """Where the model is."""
    clip: Clip
    """The model; with fsdp, this rank's part of its weights."""
    model: nn.Module
    """What is called to train it: `clip`, or DDP's wrapper around it."""
    loss: ContrastiveLoss
    """From features to a scalar; holds whatever state it needs."""
    optimizer: torch.optim.Optimizer
    """Its optimiser."""
    average: WeightAverage[Clip] | None
    """Of the weights, where the run keeps one."""
    precision: Precision
    """What the model computes in: `config.precision`, decided."""
    loader: Loader
    """Training batches, standing at `step`."""
    log: StepLog
    """Steps not yet written."""
    sample_ids: SampleIdLog | None
    """Samples of steps not yet written, where the run logs them."""
    writer: CheckpointWriter | None
    """Writes checkpoints; on rank 0."""
    timeline: Timeline
    """Seconds by activity, earlier processes of this run included."""
    clock: StepClock
    """Seconds of each step."""
    health: Health
    """Looks for signs that the run goes wrong."""
    slow_steps: SlowSteps
    """Remembers how long steps take."""
    watchers: list[Watcher]
    """Show the steps elsewhere; on rank 0."""
    step: int
    """Optimiser steps of the stage done."""
    grad_norm: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    """[] length of the last step's gradient before clipping, on the model's device."""
    same_captions: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    """[] share of the last global batch's captions that another pair had too, on the device."""
    mask_weights: dict[str, Tensor] = field(default_factory=dict)
    """Patch projection and positions that the mask goes by; empty if it compares pixels only."""
    mask_step: int = 0
    """Steps done when they were taken."""

    @property
    def config(self) -> TrainConfig:
        """Of the stage, as if it were a run of its own."""
        return self.stage.config

    @property
    def run_step(self) -> int:
        """Optimiser steps of the whole run done: the number of checkpoints and log entries."""
        return self.stage.first_step + self.step

    def refresh_mask(self) -> None:
        """Hand the current patch projection to a mask that wants it, at fixed steps."""
        mask = self.config.mask
        if mask.uses_embedding and self.step % mask.embedding_every == 0:
            tower = self.clip.image
            self.mask_weights = {
                "weight": whole(tower.patch_embed.weight).detach().float().clone(),
                "positions": whole(tower.patch_positions()).detach().float().clone(),
            }
            self.mask_step = self.step
            self.loader.set_patch_embedding(**self.mask_weights, step=self.step)

    def start_step(self) -> float:
        """Set this step's learning rate and return it."""
        config = self.config
        rate = learning_rate(
            self.step * config.batch_size,
            config.optim,
            batch_size=config.batch_size,
            total_samples=config.num_steps * config.batch_size,
        )
        set_learning_rate(self.optimizer, rate)
        return rate

    def log_scale(self) -> Tensor:
        """Logarithm of the logit scale in use, a scalar on the model's device."""
        temperature = self.loss.temperature()
        return whole(self.clip.logit_scale) if temperature is None else -temperature.log()

    def update(self, batch: PackedBatch) -> Tensor:
        """Train on one batch of this rank; nothing is read back from the device.

        Returns:
            The loss of the global batch before the update, a scalar on the model's device.
        """
        ids = batch.sample_ids.to(self.device, non_blocking=True)
        chunks = [part.to(self.device) for part in self._chunks(batch)]
        teacher = self._teacher_features(chunks)
        captions = torch.cat([caption_keys(each.tokens, each.text_offsets) for each in chunks])
        self.same_captions = repeated_share(LossRanks.of(None).gather(captions))

        def loss_of(features: Encoded) -> Tensor:
            loss = self.loss(
                features.images,
                features.texts,
                features.scale,
                logit_bias=features.bias,
                sample_ids=ids,
                captions=captions,
                step=self.step,
            )
            if teacher is None:
                return loss
            kept = distillation_loss(teacher, features.images, LossRanks.of(None))
            return loss + self.config.image_side.self_distillation * kept

        loss, self.grad_norm = train_step(
            self.model, loss_of, self.optimizer, chunks, self.config, self.timeline
        )
        self.step += 1
        if self.average:
            with self.timeline.during("averaging weights"):
                size = self.config.batch_size
                self.average.update(self.step * size, size)
        if self.sample_ids:
            self.sample_ids.add(self.run_step, ids)
        return self.ranks.mean(loss)

    def _chunks(self, batch: PackedBatch) -> list[PackedBatch]:
        """The batch in the chunks that the model encodes at once."""
        number, shape = self.config.accumulation, self.loader.config
        if number == 1:
            return [batch]
        size = shape.local_batch_size // number
        equal = equal_chunks(self.loader.mask, shape.num_patches, size, shape.group_size)
        return split(batch, number, equal_patches=equal)

    def _teacher_features(self, chunks: list[PackedBatch]) -> Tensor | None:
        """[B, d] image features of the average of the weights, where the run is held to them."""
        if not self.config.image_side.self_distillation:
            return None
        assert self.average is not None
        with self.timeline.during("self-distillation"), torch.no_grad():
            parts = [
                self.average.model.encode_image(chunk.patches, chunk.positions, chunk.image_offsets)
                for chunk in chunks
            ]
        return F.normalize(torch.cat(parts).float(), dim=1)

    def flush(self) -> list[StepRecord]:
        """Write the pending steps; all ranks must call it behind the same step.

        Returns:
            The steps that were pending.

        Raises:
            NonFiniteLossError: a loss or gradient was not finite; names the file of the batch.
        """
        if self.sample_ids:
            self.sample_ids.flush()
        try:
            with self.timeline.during(DEVICE):
                records = self.log.flush()
        except NonFiniteLossError as error:
            raise write_bad_batch(
                error, self.loader, self.stage, self.folder.path, self.ranks.rank
            ) from error
        for watcher in self.watchers:
            watcher.write(records)
        slow = self.slow_steps.explain(records)
        if slow:
            logger.warning("%s", slow)
        if self.ranks.is_main:  # every rank sees the same losses
            for sign in self.health.warnings(records):
                logger.warning("%s", sign)
        return records

    def save(self) -> list[StepRecord]:
        """Write the pending steps, and begin to write a checkpoint; called by all ranks.

        Training goes on beside the writing: what goes wrong there is raised by the next call of
        `check_writer`, `save` or `gather`.

        Returns:
            The steps that were pending.

        Raises:
            CheckpointError: the one before could not be written; earlier ones are untouched.
            NonFiniteLossError: a loss was not finite; nothing is saved then.
        """
        records = self.flush()
        with self.timeline.during("checkpoints"):
            parts = self._parts()
            if self.writer:
                self.writer.start(
                    Checkpoint(
                        step=self.run_step,
                        parts=parts,
                        architecture=_architecture(self.clip.config),
                        state=self._state(),
                    )
                )
        return records

    def check_writer(self) -> None:
        """Raise what went wrong with the last checkpoint.

        Raises:
            CheckpointError: it could not be written; earlier ones are untouched.
        """
        if self.writer:
            self.writer.check()

    def finish_writing(self) -> None:
        """Return, on all ranks, once the last checkpoint is on the disk.

        Raises:
            CheckpointError: it could not be written; on rank 0.
        """
        self.ranks.on_main(lambda: self.writer.wait() if self.writer else None)

    def end_stage(self) -> None:
        """Return, on all ranks, once the next stage can start from this one's last checkpoint.

        Raises:
            CheckpointError: it could not be written; on rank 0.
        """
        self.finish_writing()
        self.ranks.end_votes()

    def evaluation_model(self) -> Clip:
        """A copy with all weights, or with their average where the run evaluates that.

        Every rank must ask, and gets one on its device, in evaluation mode. It computes in its
        weights' type and is not compiled, as every set brings other shapes.
        """
        averaged = self.average is not None and self.config.evaluation.ema
        source = self.average.model if self.average and averaged else self.clip
        # Fresh weights are drawn and thrown away: the run's own generator must not notice.
        with torch.random.fork_rng(devices=[]):
            whole = whole_clip(source, on_this_rank=True)
            assert whole is not None
            copy = Clip(whole.config)
            copy.load_state_dict(merged_state(whole))
        return copy.to(self.device).eval()

    def gather(self) -> None:
        """Bring to rank 0 what the end of a run needs; called by all ranks behind the last step.

        Raises:
            CheckpointError: the last checkpoint could not be written; on rank 0.
        """
        self.end_stage()
        stats = self.loader.stats
        for rank, bad in enumerate(self.ranks.gather(stats.bad_samples)):
            if rank:
                stats.bad_samples |= bad

    def close(self) -> None:
        """End the loader's threads, and let a checkpoint be finished."""
        self.loader.close()
        for watcher in self.watchers:
            watcher.close()
        if self.writer:
            self.writer.wait()

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """Copies of all tensors of the training state in host memory; empty but on rank 0."""
        is_main = self.ranks.is_main
        optimizer = checkpoint.optimizer_tensors(self.clip, self.optimizer)
        return {
            checkpoint.WEIGHTS: self._weights(self.clip),
            EMA: self._weights(self.average.model) if self.average else {},
            checkpoint.OPTIMIZER: state_on_host(optimizer, is_main),
            LOSS: state_on_host(self.loss.state_tensors(), is_main),
            LORA: state_on_host(lora_state(self.clip), is_main),
            MASK: state_on_host(self.mask_weights, is_main),
        }

    def _weights(self, clip: Clip) -> dict[str, Tensor]:
        """A model in open_clip's names, copied to host memory; empty but on rank 0."""
        copy = whole_clip(clip, self.ranks.is_main)
        weights = open_clip_weights.dump(copy) if copy is not None else {}
        return state_on_host(weights, self.ranks.is_main)

    def _state(self) -> dict[str, Any]:
        return {
            "samples": self.stage.samples(self.step),
            "stage": self.stage.number,
            **{
                f"{name}_fingerprint": value
                for name, value in fingerprints(self.loader, self.clip.config).items()
            },
            "decoder": decoder_kind(self.loader),
            "precision": self.precision,
            "decoding": decode_device(self.loader).stored(),
            "config": to_json(self.config),
            "world_size": self.ranks.world_size,
            "mask_step": self.mask_step,
            "seconds": dict(self.timeline.seconds),
            "num_replaced": self.loader.stats.num_replaced,
            "num_missing_captions": self.loader.stats.num_missing_captions,
            "num_short_captions": self.loader.stats.num_short_captions,
            "versions": versions(),
        }


def decoder_kind(loader: Loader) -> str:
    """What decodes, without the number of a GPU."""
    return loader.decoder_name.split(":")[0]


def fingerprints(loader: Loader, architecture: ClipConfig) -> dict[str, str | None]:
    """What must be the same for a run to go on, each by a name that changes with its content."""
    model = json.dumps(_architecture(architecture), sort_keys=True)
    own = own_tokens(architecture.text) if architecture.has_text_tower else None
    return {
        "index": loader.index.fingerprint,
        "selection": loader.dataset.selection_fingerprint,
        "tokenizer": own.identity if own else loader.index.tokenizer,
        "captions": loader.captions.fingerprint or "original",
        "embeddings": loader.embeddings.fingerprint if loader.embeddings else "none",
        "model": hashlib.sha256(model.encode()).hexdigest(),
    }


def _architecture(config: ClipConfig) -> dict[str, Any]:
    """Content of open_clip_config.json, as open_clip's `local-dir:` models have it."""
    return {
        "model_cfg": open_clip_weights.open_clip_config(config),
        "preprocess_cfg": preprocess_config(config),
    }
