"""From an index to an endless sequence of packed batches.

Two threads work ahead of the consumer: one reads bytes, one decodes, masks and packs. All that is
random comes from the plan, so the batches of a step are the same wherever reading starts.

Legend: B pairs of this rank, N patches of an image, T visible patches, D = 3*p*p values of a patch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.augment import AugmentConfig, augment
from pipeline.batch import PackedBatch
from pipeline.captions import CaptionTable
from pipeline.decoding import Decoder, open_decoder
from pipeline.loader_config import LoaderConfig
from pipeline.masking import ClusterMask, MaskConfig, MaskStrategy, PatchEmbedding
from pipeline.order import Order, SampleOrder, Visits
from pipeline.patches import patchify
from pipeline.plan import EvaluationPlan, Plan, TrainingPlan
from pipeline.prefetch import Prefetched
from pipeline.reader import ShardReader
from pipeline.selection import Dataset, open_dataset
from pipeline.stages import Fetched, Patches, Preview
from pipeline.stats import BadSample, LoaderStats
from pipeline.window_order import WindowOrder

logger = logging.getLogger(__name__)

_NUM_CALIBRATION_STEPS = 4
"""The first steps of the run, from whose similarities a mask finds its threshold."""
_MAX_ATTEMPTS = 8
"""So many samples in a row may be bad in one slot before the data, not a sample, is the fault."""


class Loader(Iterator[PackedBatch]):
    """An iterator of `PackedBatch` that can start at any step. Made by `open_loader`."""

    def __init__(
        self, dataset: Dataset, captions: CaptionTable, config: LoaderConfig, plan: Plan
    ) -> None:
        """Prepare; threads start with the first batch.

        Args:
            dataset: an index, or a selection of it.
            captions: texts of the source in use.
            config: what the batches hold.
            plan: which samples come when.
        """
        self.dataset = dataset
        self.index = dataset.index
        self.config = config
        self.stats = LoaderStats()
        self._captions = captions
        self._plan = plan
        self._embedding = _embedding(config)
        self._mask = self._new_mask()
        self._reader = ShardReader(dataset.index, config.num_threads, config.cache)
        self._decoder = _open_decoder(config)
        self._decoding = Lock()
        self._step = 0
        self._stages: list[Prefetched] = []
        self._served_at: float | None = None

    @property
    def step(self) -> int:
        """The step whose batch comes next."""
        return self._step

    def seek(self, step: int) -> None:
        """Go on with the batch of `step`; what was made ahead for another place is dropped."""
        if step != self._step:
            self._stop()
            self._step = step

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> PackedBatch:
        if not self._stages:
            self._start()
        start = time.perf_counter()
        if self._served_at is not None:
            self.stats.use_s += start - self._served_at
        batch = next(self._stages[-1])
        self._served_at = time.perf_counter()
        self.stats.wait_s += self._served_at - start
        self._step += 1
        return batch

    def set_patch_embedding(self, weight: Tensor, positions: Tensor, step: int) -> None:
        """Hand the mask the model's patch projection; batches made ahead are dropped.

        Every batch behind this call, and none before it, is masked by these weights, so a run that
        does it at the same steps with the same weights has the same masks.

        Args:
            weight: [width, D] of the projection of normalised patches.
            positions: [N, width] positional embedding.
            step: steps trained when the weights were taken.

        Raises:
            ValueError: the mask compares pixels only.
        """
        if self._embedding is None:
            raise ValueError("the mask compares pixels only: embedding_first and _last are 0")
        self._stop()
        self._embedding.update(weight, step, positions)
        self._mask = self._new_mask()

    def _new_mask(self) -> MaskStrategy:
        mask = self.config.mask.build()
        if self._embedding is not None and isinstance(mask, ClusterMask):
            return replace(mask, embedding=self._embedding)
        return mask

    def close(self) -> None:
        """End the threads and close the shards."""
        self._stop()
        self._reader.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self) -> None:
        self._calibrate()
        stats, depth = self.stats, self.config.prefetch
        read = stats.read.timed_output(self._fetch(self._step))
        fetched = Prefetched(read, depth, "tessera-read")
        made = map(self._assemble, stats.decode.timed_input(fetched))
        packed = Prefetched(stats.pack.timed_output(made), depth, "tessera-pack")
        self._stages = [fetched, packed]

    def _stop(self) -> None:
        for stage in reversed(self._stages):
            stage.close()
        self._stages = []
        self._served_at = None

    def _fetch(self, first_step: int) -> Iterator[Fetched]:
        for step in count(first_step):
            visits = self._plan.visits(step)
            if visits is None:
                return
            self._reader.expect(self._plan.upcoming_shards(step))
            yield Fetched(step=step, visits=visits, encoded=self._read(visits))

    def _read(self, visits: Visits) -> list[bytes | OSError]:
        with self.stats.read.working(len(visits.sample_ids)):
            encoded = self._reader.read(visits.sample_ids)
        self.stats.read.num_bytes += sum(len(e) for e in encoded if isinstance(e, bytes))
        return encoded

    def preview(self, step: int) -> Preview:
        """Make one step here and now, up to the mask; the iteration is not moved.

        Raises:
            IndexError: the plan has no such step.
        """
        return self._show(self._fetch_now(step))

    def assemble(self, step: int) -> PackedBatch:
        """Make the batch of one step here and now; the iteration is not moved.

        Raises:
            IndexError: the plan has no such step.
        """
        return self._assemble(self._fetch_now(step))

    def _fetch_now(self, step: int) -> Fetched:
        visits = self._plan.visits(step)
        if visits is None:
            raise IndexError(f"there is no step {step}")
        return Fetched(step=step, visits=visits, encoded=self._read(visits))

    def _calibrate(self) -> None:
        """Find the threshold of a mask that has none; a resumed run finds the same one."""
        mask = self._mask
        if isinstance(mask, ClusterMask) and mask.needs_calibration:
            steps = (self._patches(self._fetch_now(k)) for k in range(_NUM_CALIBRATION_STEPS))
            self._mask = mask.calibrate(mask.similarity(each.patches, each.noise) for each in steps)
            logger.info("mask threshold %.4f", self._mask.threshold)

    def _assemble(self, fetched: Fetched) -> PackedBatch:
        shown = self._show(fetched)
        with self.stats.pack.working(len(shown.images)):
            batch = self._pack(shown)
        self.stats.pack.num_bytes += batch.num_bytes
        return batch

    def _show(self, fetched: Fetched) -> Preview:
        self._calibrate()
        made = self._patches(fetched)
        with self.stats.mask.working(len(made.images)):
            visible = self._mask.visible(made.patches, made.noise)
        self.stats.mask.num_bytes += visible.numel()
        return Preview(
            images=made.images,
            patches=made.patches,
            noise=made.noise,
            visible=visible,
            visits=made.visits,
            caption_rows=self._plan.caption_rows(made.visits),
        )

    def _patches(self, fetched: Fetched) -> Patches:
        images, visits = self._decode_or_replace(fetched)
        with self.stats.patchify.working(len(images)):
            if self.config.augment.active:
                images = augment(images, self._plan.augmentation(visits), self.config.augment)
            patches = patchify(images, self.config.patch_size)
        self.stats.patchify.num_bytes += patches.numel()
        noise = torch.from_numpy(self._plan.noise(visits, self.config.num_patches))
        return Patches(images=images, patches=patches, noise=noise.to(images.device), visits=visits)

    def _decode_or_replace(self, fetched: Fetched) -> tuple[Tensor, Visits]:
        """Images of a step; bad samples are replaced, or left out where the plan says so."""
        ids, passes = fetched.visits.sample_ids.copy(), fetched.visits.passes.copy()
        images, bad = self._decode(fetched.visits, fetched.encoded)
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            if not len(bad):
                break
            visits = self._plan.replacements(fetched.step, bad, attempt)
            if visits is None:
                good = np.setdiff1d(np.arange(len(ids)), bad)
                return images[good], Visits(sample_ids=ids[good], passes=passes[good])
            ids[bad], passes[bad] = visits.sample_ids, visits.passes
            images[bad], still_bad = self._decode(visits, self._read(visits))
            bad = bad[still_bad]
        if len(bad):
            raise self._broken_data()
        return images, Visits(sample_ids=ids, passes=passes)

    def _decode(
        self, visits: Visits, encoded: list[bytes | OSError]
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Images [B, S, S, 3] and the places of those that failed, which are counted and logged."""
        windows = self._plan.windows(visits)
        data = [b"" if isinstance(item, OSError) else item for item in encoded]
        # A preview may be asked for while the threads work ahead, and DALI hangs if called twice.
        with self._decoding, self.stats.decode.working(len(data)):
            decoded = self._decoder.decode(data, windows)
        self.stats.decode.num_bytes += decoded.images.numel()
        for place, reason in decoded.failures.items():
            item = encoded[place]
            failed = self.stats.read if isinstance(item, OSError) else self.stats.decode
            failed.num_replaced += 1
            self._record_bad(
                int(visits.sample_ids[place]), str(item) if isinstance(item, OSError) else reason
            )
        return decoded.images, np.array(sorted(decoded.failures), dtype=np.int64)

    def _record_bad(self, sample_id: int, reason: str) -> None:
        if sample_id in self.stats.bad_samples:
            return
        shard = self.index.shards[self.index.shard[sample_id]].location
        bad = BadSample(key=self.index.keys([sample_id])[0], shard=shard, reason=reason)
        self.stats.bad_samples[sample_id] = bad
        logger.warning("skipped sample %s of %s: %s", bad.key, bad.shard, bad.reason)

    def _broken_data(self) -> RuntimeError:
        last = list(self.stats.bad_samples.values())[-1]
        return RuntimeError(
            f"{_MAX_ATTEMPTS} samples in a row could not be decoded, the last one {last.key} of "
            f"{last.shard} ({last.reason}): the shards are damaged or were changed after indexing; "
            "index them again with tools/index_shards.py"
        )

    def _pack(self, shown: Preview) -> PackedBatch:
        tokens, text_offsets = self._captions.pack(shown.caption_rows, self.config.context_length)
        chosen = shown.visible.flatten().nonzero().squeeze(1)
        image_offsets = torch.zeros(len(shown.visible) + 1, dtype=torch.int32)
        image_offsets[1:] = shown.visible.sum(dim=1).cumsum(dim=0)
        return PackedBatch(
            patches=shown.patches.flatten(0, 1).index_select(0, chosen),
            positions=(chosen % self.config.num_patches).int(),
            image_offsets=image_offsets,
            tokens=torch.from_numpy(tokens),
            text_offsets=torch.from_numpy(text_offsets),
            sample_ids=torch.from_numpy(shown.visits.sample_ids),
        )


def _embedding(config: LoaderConfig) -> PatchEmbedding | None:
    mask = config.mask
    if not mask.uses_embedding:
        return None
    return PatchEmbedding(
        num_steps=config.num_steps, first=mask.embedding_first, last=mask.embedding_last
    )


def _open_decoder(config: LoaderConfig) -> Decoder:
    return open_decoder(
        config.decoder,
        image_size=config.image_size,
        batch_size=config.batch_size,
        num_threads=config.num_threads,
        device=config.device,
    )


def open_loader(
    index_dir: Path | str, config: LoaderConfig, *, rank: int = 0, world_size: int = 1
) -> Loader:
    """Open the training loader: endless, shuffled, cropped and masked.

    Args:
        index_dir: `INDEX`, written by tools/index_shards.py, or `INDEX@SELECTION`, written by
            tools/select_samples.py. Sample ids are rows of the index in both cases.
        config: what the batches hold.
        rank: this process.
        world_size: processes that share each batch; divides batch_size.

    Raises:
        FileNotFoundError: no index or selection there, or a shard has gone.
        ValueError: shards changed since they were indexed, the selection is of another state of
            the index, or the batch does not fit the data.
    """
    dataset = open_dataset(index_dir)
    index = dataset.index
    index.check_shards()
    if config.batch_size > dataset.num_samples:
        raise ValueError(
            f"batch_size {config.batch_size} is more than the {dataset.num_samples} samples of "
            f"{index_dir}: a batch would hold the same pair twice"
        )
    if config.batch_size % world_size:
        raise ValueError(f"batch_size {config.batch_size} does not divide over {world_size} ranks")
    captions = index.captions(config.caption_source)
    plan = TrainingPlan(
        index=index,
        captions=captions,
        order=_order(dataset, config),
        crop=config.crop,
        batch_size=config.batch_size,
        rank=rank,
        world_size=world_size,
    )
    return Loader(dataset, captions, config, plan)


def _order(dataset: Dataset, config: LoaderConfig) -> Order:
    index = dataset.index
    if config.order == "window":
        return WindowOrder(index.shard, config.seed, config.window_shards, dataset.rows)
    return SampleOrder(index.num_samples, config.seed, dataset.rows)


def open_evaluation_loader(index_dir: Path | str, config: LoaderConfig) -> Loader:
    """Open a loader that goes once through a set: centre crop, nothing masked, nothing drawn.

    Args:
        index_dir: `INDEX` or `INDEX@SELECTION`, as for `open_loader`.
        config: sizes are taken from it; its crop and mask are not used.

    Raises:
        FileNotFoundError: no index or selection there, or a shard has gone.
        ValueError: shards changed since they were indexed, or the selection is of another state of
            the index.
    """
    dataset = open_dataset(index_dir)
    dataset.index.check_shards()
    captions = dataset.index.captions(config.caption_source)
    plan = EvaluationPlan(dataset=dataset, captions=captions, batch_size=config.batch_size)
    config = replace(config, mask=MaskConfig(kind="none"), augment=AugmentConfig())
    return Loader(dataset, captions, config, plan)
