"""From an index to an endless sequence of packed batches.

Two threads work ahead of the consumer: one reads bytes, one decodes, masks, packs and sends to the
model's device. All that is random comes from the plan, so the batches of a step are the same
wherever reading starts.

Legend: D = 3*p*p values of a patch, N patches of an image.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, overload

import torch
from torch import Tensor

from tessera.pipeline.assembler import Assembler
from tessera.pipeline.augment_config import AugmentConfig
from tessera.pipeline.batch import DenseBatch, PackedBatch
from tessera.pipeline.decode_device import settle_device
from tessera.pipeline.device_copy import DeviceCopier, Sent
from tessera.pipeline.index.caption_mix import CaptionMix, open_captions
from tessera.pipeline.index.dataset import Dataset, open_dataset
from tessera.pipeline.index.embedding_mix import EmbeddingMix
from tessera.pipeline.loader_config import LoaderConfig
from tessera.pipeline.mask_updates import MaskUpdates, MaskWeights
from tessera.pipeline.masking import MaskConfig, MaskStrategy
from tessera.pipeline.mixture import Mixture, TrainingSet, check_batch, open_order, open_sets
from tessera.pipeline.plan import EvaluationPlan, Plan, TrainingPlan
from tessera.pipeline.prefetch import Prefetched
from tessera.pipeline.stages import Fetched, Preview
from tessera.pipeline.stats import LoaderStats, timed

Batch = TypeVar("Batch", PackedBatch, DenseBatch)


class Loader(Iterator[Batch], Generic[Batch]):
    """An iterator of batches that can start at any step. Made by `open_loader`.

        with open_loader("data/index", LoaderConfig(batch_size=256)) as loader:
            loader.seek(1000)        # resume: one integer is the whole state
            for batch in loader:     # endless in training; once through in evaluation
                ...
            print(loader.stats.slowest())

    What a batch holds follows from the configuration and the step alone: not from threads, from
    earlier steps, from where iteration began, nor from the number of ranks that share it. Work
    flows through two threads, each a bounded number of batches ahead:

        plan ▸ read ▸ | decode ▸ patchify ▸ mask ▸ pack ▸ copy ▸ | consumer

    The first step starts the threads, `seek` and `close` end them, and an error in one of them is
    raised by the `next` that reaches its step. `preview` and `assemble` make one step on the spot,
    without moving the iteration.

    A sample that turns out bad after it was indexed is replaced (see docs/pipeline.md), counted in
    `stats` and logged once.
    """

    def __init__(
        self,
        dataset: Dataset | Mixture,
        captions: CaptionMix,
        config: LoaderConfig,
        plan: Plan,
    ) -> None:
        """Prepare; threads start with the first batch.

        Args:
            dataset: an index, a selection of it, or a mixture of such sets.
            captions: texts of the sources in use.
            config: what the batches hold.
            plan: which samples come when.

        Raises:
            ValueError: this machine lacks the decoder or the device that the configuration names,
                or the index lacks its embeddings.
        """
        self.dataset = dataset
        self.index = dataset.index
        self.captions = captions
        self.config = config
        self.stats = LoaderStats()
        name = config.text_embeddings
        self.embeddings = EmbeddingMix(captions, name) if name else None
        self._copier = DeviceCopier(config.model_device or config.device)
        self._assembler = Assembler(
            dataset.index, captions, config, plan, self.stats, self.embeddings
        )
        awaits = config.await_mask_weights and config.mask.uses_embedding
        self._updates = MaskUpdates(config.mask.embedding_every if awaits else 0)
        self._step = 0
        self._reading: Prefetched[Fetched] | None = None
        self._packing: Prefetched[Sent] | None = None
        self._served_at: float | None = None

    @property
    def step(self) -> int:
        """The step whose batch comes next."""
        return self._step

    @property
    def decoder_name(self) -> str:
        """What decodes, such as `turbo` or `dali-cuda:0`."""
        return self._assembler.decoder_name

    @property
    def mask(self) -> MaskStrategy:
        """The mask in use, with its threshold if it needs one; found on the first call."""
        with self._copier.queue():
            return self._assembler.mask

    def seek(self, step: int) -> None:
        """Go on with the batch of `step`; what was made ahead for another place is dropped."""
        if step != self._step:
            self._stop()
            self._step = step

    def __iter__(self) -> Loader[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._updates.is_missing(self._step):
            raise RuntimeError(
                f"step {self._step} needs new weights for its mask: call set_patch_embedding "
                "before it, or leave await_mask_weights False"
            )
        packing = self._packing or self._start()
        start = time.perf_counter()
        if self._served_at is not None:
            self.stats.use_s += start - self._served_at
        batch = self._copier.receive(next(packing))
        self._step += 1
        while not batch.num_samples:  # an evaluation's, all of whose samples turned out bad
            batch = self._copier.receive(next(packing))
            self._step += 1
        self._served_at = time.perf_counter()
        self.stats.wait_s += self._served_at - start
        return cast("Batch", batch)

    def preview(self, step: int) -> Preview:
        """Make one step here and now, up to the mask; the iteration is not moved.

        Raises:
            IndexError: the plan has no such step.
        """
        return self._assembler.show(self._fetch(step))

    def assemble(self, step: int) -> Batch:
        """Make the batch of one step here and now; the iteration is not moved.

        Raises:
            IndexError: the plan has no such step.
        """
        return cast("Batch", self._copier.receive(self._make(self._fetch(step))))

    def set_patch_embedding(self, weight: Tensor, positions: Tensor, step: int) -> None:
        """Hand the mask the model's patch projection.

        Every batch after this call, and none before it, is masked by these weights, so a run that
        does it at the same steps with the same weights has the same masks. With
        `LoaderConfig.await_mask_weights` nothing is waited for at the steps that are due, and
        nothing made ahead is lost. Otherwise batches made ahead are dropped.

        Args:
            weight: [width, D] of the projection of normalised patches.
            positions: [N, width] positional embedding.
            step: steps trained when the weights were taken.

        Raises:
            ValueError: the mask compares pixels only.
        """
        if not self.config.mask.uses_embedding:
            raise ValueError("the mask compares pixels only: embedding_first and _last are 0")
        weights = MaskWeights.queue(weight, positions, step, self.config.device)
        awaited = self._packing and step == self._step and self._updates.is_awaited(step)
        if not awaited:
            self._stop()
        self._updates.give(weights)
        if not awaited:
            self._take_weights()

    def close(self) -> None:
        """End the threads and close the shards; a silent server delays it by half a minute."""
        for thread in (self._reading, self._packing):
            if thread is not None:
                thread.stop()  # what a read that was given up leaves is served to nobody
        self._assembler.give_up()
        self._stop()
        self._assembler.close()

    def __enter__(self) -> Loader[Batch]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self) -> Prefetched[Sent]:
        # Here, not in a thread: a mask that finds no threshold fails before any batch.
        _ = self.mask
        self._updates.restart()
        stats, depth = self.stats, self.config.prefetch
        read = timed(self._read_on(self._step), out_of=stats.read)
        self._reading = Prefetched(read, depth, "tessera-read")
        made = self._make_on(timed(self._reading, into=stats.decode))
        self._packing = Prefetched(timed(made, out_of=stats.copy), depth, "tessera-pack")
        return self._packing

    def _stop(self) -> None:
        self._updates.stop()
        # The one that reads goes first: the other one waits for what it reads.
        for thread in (self._reading, self._packing):
            if thread is not None:
                thread.close()
        self._packing = self._reading = None
        self._served_at = None

    def _read_on(self, first_step: int) -> Iterator[Fetched]:
        for step in count(first_step):
            self._assembler.expect(step)
            fetched = self._assembler.fetch(step)
            if fetched is None:
                return
            yield fetched

    def _make_on(self, read: Iterator[Fetched]) -> Iterator[Sent]:
        # Of this thread alone: torchrun sets OMP_NUM_THREADS=1, and then all that torch does here
        # would run on one core.
        torch.set_num_threads(self.config.num_threads)
        for fetched in read:
            if not self._updates.wait(fetched.step):
                return
            self._take_weights()
            yield self._make(fetched)

    def _take_weights(self) -> None:
        """Have the next batches masked by the newest weights."""
        weights = self._updates.take()
        if weights is not None:
            with self._copier.queue():
                self._assembler.set_patch_embedding(weights)

    def _make(self, fetched: Fetched) -> Sent:
        with self._copier.queue():
            batch = self._assembler.assemble(fetched)
            with self.stats.copy.working(batch.num_samples):
                sent = self._copier.send(batch)
        self.stats.copy.num_bytes += batch.num_bytes
        return sent

    def _fetch(self, step: int) -> Fetched:
        fetched = self._assembler.fetch(step)
        if fetched is None:
            raise IndexError(f"there is no step {step}")
        return fetched


@overload
def open_loader(
    index_dir: TrainingSet | Sequence[TrainingSet],
    config: LoaderConfig | None = None,
    *,
    output: Literal["dense"],
    **changes: Any,
) -> Loader[DenseBatch]: ...


@overload
def open_loader(
    index_dir: TrainingSet | Sequence[TrainingSet],
    config: LoaderConfig | None = None,
    *,
    output: Literal["packed"] = "packed",
    **changes: Any,
) -> Loader[PackedBatch]: ...


def open_loader(
    index_dir: TrainingSet | Sequence[TrainingSet],
    config: LoaderConfig | None = None,
    **changes: Any,
) -> Loader[Any]:
    """Open the training loader: endless, shuffled, cropped, and masked where it is asked for.

    Args:
        index_dir: `INDEX`, written by tools/index_shards.py, or `INDEX@SELECTION`, written by
            tools/select_samples.py. Sample ids are rows of the index in both cases. Or a list of
            several, each with a weight: `["A=1", "B@clean=0.5"]` or `[("A", 1), ("B@clean", 0.5)]`.
            An epoch then visits each sample of a set as often as its weight says, and the sample
            ids of a set follow those of the index before it (docs/data.md).
        config: what the batches hold, and which part of them this process serves; its defaults
            where it is left out.
        changes: fields of the configuration that are set here: `open_loader("data/index",
            batch_size=256, output="dense")`.

    Raises:
        FileNotFoundError: no index or selection there, or a shard has gone.
        ValueError: the index is damaged, shards changed since, the selection is of another state of
            the index, embeddings are missing or of other captions, or the batch does not fit the
            data.
    """
    config = replace(config or LoaderConfig(), **changes)
    dataset = open_sets(index_dir)
    index = dataset.index
    if config.rank == 0:  # one reader of whole files is enough
        index.check_files()
    index.check_shards()
    check_batch(dataset, config.batch_size)
    # One set's pictures show whether the GPU decodes like Pillow.
    config = settle_device(dataset.parts[0] if isinstance(dataset, Mixture) else dataset, config)
    captions = open_captions(
        index, config.caption_weights, config.text_reduction, every_text=config.every_text
    )
    plan = TrainingPlan(
        index=index,
        captions=captions,
        order=open_order(
            dataset,
            config.seed,
            window_shards=config.window_shards if config.order == "window" else None,
        ),
        crop=config.crop,
        batch_size=config.batch_size,
        rank=config.rank,
        world_size=config.world_size,
    )
    return Loader(dataset, captions, config, plan)


def open_evaluation_loader(index_dir: Path | str, config: LoaderConfig) -> Loader[Any]:
    """Open a loader that goes once through a set: centre crop, nothing masked, nothing drawn.

    Args:
        index_dir: `INDEX` or `INDEX@SELECTION`, as for `open_loader`.
        config: sizes are taken from it; its crop, mask, embeddings and ranks are not used, and auto
            is the CPU.

    Raises:
        FileNotFoundError: no index or selection there, or a shard has gone.
        ValueError: shards changed since they were indexed, or the selection is of another state of
            the index.
    """
    dataset = open_dataset(index_dir)
    dataset.index.check_files()
    dataset.index.check_shards()
    captions = CaptionMix(dataset.index, config.caption_weights)
    plan = EvaluationPlan(dataset=dataset, captions=captions, batch_size=config.batch_size)
    config = replace(
        config,
        mask=MaskConfig(kind="none"),
        augment=AugmentConfig(),
        # Scores are the same on every machine.
        device="cpu" if config.device == "auto" else config.device,
        text_embeddings="",
        rank=0,
        world_size=1,
    )
    return Loader(dataset, captions, config, plan)
