"""From an index to an endless sequence of packed batches.

Two threads work ahead of the consumer: one reads bytes, one decodes, masks and packs. All that is
random comes from the plan, so the batches of a step are the same wherever reading starts.

Legend: B pairs of this rank, N patches of an image, T visible patches, D = 3*p*p values of a patch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import PackedBatch
from pipeline.captions import CaptionTable
from pipeline.crops import CropConfig
from pipeline.decode import Decoder
from pipeline.index import Index, open_index
from pipeline.masking import MaskConfig, MaskStrategy
from pipeline.order import SampleOrder, Visits
from pipeline.patches import patchify
from pipeline.plan import EvaluationPlan, Plan, TrainingPlan
from pipeline.prefetch import Prefetched
from pipeline.reader import ShardReader
from pipeline.stats import BadSample, LoaderStats

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 8
"""So many samples in a row may be bad in one slot before the data, not a sample, is the fault."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Everything that decides what the batches hold, and how fast they come."""

    batch_size: int = 256
    """Pairs in a batch, over all ranks."""
    image_size: int = 224
    """Side of the square that the crop window is resized to, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels; divides image_size."""
    context_length: int = 77
    """Most text tokens of a caption, start and end included."""
    seed: int = 0
    """Of the order and of every draw made for a sample."""
    caption_source: str = "caption"
    """Which of the index's caption sources is served."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random resized crop; evaluation takes the centre."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which patches are hidden; evaluation hides none."""
    num_threads: int = 2
    """Threads that read, and threads that decode."""
    prefetch: int = 2
    """Batches that may wait, read and packed each."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        for name in ("batch_size", "context_length", "num_threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def num_patches(self) -> int:
        """N, patches of a full image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fetched:
    """A step between the two threads."""

    step: int
    visits: Visits
    encoded: list[bytes | OSError]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A step before it is packed: what a person would want to see of it."""

    images: Tensor
    """[B, S, S, 3] uint8, decoded, cropped and resized."""
    patches: Tensor
    """[B, N, D] uint8, the same pixels."""
    noise: Tensor
    """[B, N] float32, what the mask drew from."""
    visible: Tensor
    """[B, N] bool, what the model gets to see."""
    visits: Visits
    """[B] samples actually served, replacements included."""
    caption_rows: NDArray[np.int64]
    """[B] rows of the caption table, the texts served with them."""


class Loader(Iterator[PackedBatch]):
    """An iterator of `PackedBatch` that can start at any step. Made by `open_loader`."""

    def __init__(
        self, index: Index, captions: CaptionTable, config: LoaderConfig, plan: Plan
    ) -> None:
        """Prepare; threads start with the first batch.

        Args:
            index: the data set.
            captions: texts of the source in use.
            config: what the batches hold.
            plan: which samples come when.
        """
        self.index = index
        self.config = config
        self.stats = LoaderStats()
        self._captions = captions
        self._plan = plan
        self._mask: MaskStrategy = config.mask.build()
        self._reader = ShardReader(index, config.num_threads)
        self._decoder = _open_decoder(config)
        self._decoding = Lock()
        self._step = 0
        self._stages: list[Prefetched] = []

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
        batch = next(self._stages[-1])
        self.stats.wait_s += time.perf_counter() - start
        self._step += 1
        return batch

    def close(self) -> None:
        """End the threads and close the shards."""
        self._stop()
        self._reader.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self) -> None:
        fetched = Prefetched(self._fetch(self._step), self.config.prefetch, "tessera-read")
        packed = Prefetched(map(self._assemble, fetched), self.config.prefetch, "tessera-pack")
        self._stages = [fetched, packed]

    def _stop(self) -> None:
        for stage in reversed(self._stages):
            stage.close()
        self._stages = []

    def _fetch(self, first_step: int) -> Iterator[_Fetched]:
        for step in count(first_step):
            visits = self._plan.visits(step)
            if visits is None:
                return
            yield _Fetched(step=step, visits=visits, encoded=self._read(visits))

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

    def _fetch_now(self, step: int) -> _Fetched:
        visits = self._plan.visits(step)
        if visits is None:
            raise IndexError(f"there is no step {step}")
        return _Fetched(step=step, visits=visits, encoded=self._read(visits))

    def _assemble(self, fetched: _Fetched) -> PackedBatch:
        shown = self._show(fetched)
        with self.stats.pack.working(len(shown.images)):
            batch = self._pack(shown)
        self.stats.pack.num_bytes += batch.num_bytes
        return batch

    def _show(self, fetched: _Fetched) -> Preview:
        images, visits = self._decode_or_replace(fetched)
        with self.stats.mask.working(len(images)):
            patches = patchify(images, self.config.patch_size)
            noise = torch.from_numpy(self._plan.noise(visits, self.config.num_patches))
            visible = self._mask.visible(patches, noise)
        self.stats.mask.num_bytes += patches.numel()
        return Preview(
            images=images,
            patches=patches,
            noise=noise,
            visible=visible,
            visits=visits,
            caption_rows=self._plan.caption_rows(visits),
        )

    def _decode_or_replace(self, fetched: _Fetched) -> tuple[Tensor, Visits]:
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
            self._record_bad(
                int(visits.sample_ids[place]), str(item) if isinstance(item, OSError) else reason
            )
        return decoded.images, np.array(sorted(decoded.failures), dtype=np.int64)

    def _record_bad(self, sample_id: int, reason: str) -> None:
        self.stats.num_replaced += 1
        if sample_id in self.stats.bad_samples:
            return
        shard = str(self.index.shards[self.index.shard[sample_id]].path)
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


def _open_decoder(config: LoaderConfig) -> Decoder:
    # DALI takes a second to import, and whoever only looks at a configuration needs none of it.
    from pipeline.dali_graph import DaliDecoder

    return DaliDecoder(config.image_size, config.batch_size, config.num_threads)


def open_loader(
    index_dir: Path | str, config: LoaderConfig, *, rank: int = 0, world_size: int = 1
) -> Loader:
    """Open the training loader: endless, shuffled, cropped and masked.

    Args:
        index_dir: written by tools/index_shards.py.
        config: what the batches hold.
        rank: this process.
        world_size: processes that share each batch; divides batch_size.

    Raises:
        FileNotFoundError: no index there, or a shard has gone.
        ValueError: shards changed since they were indexed, or the batch does not fit the data.
    """
    index = open_index(Path(index_dir))
    index.check_shards()
    if config.batch_size > index.num_samples:
        raise ValueError(
            f"batch_size {config.batch_size} is more than the {index.num_samples} samples of "
            f"{index_dir}: a batch would hold the same pair twice"
        )
    if config.batch_size % world_size:
        raise ValueError(f"batch_size {config.batch_size} does not divide over {world_size} ranks")
    captions = index.captions(config.caption_source)
    plan = TrainingPlan(
        index=index,
        captions=captions,
        order=SampleOrder(index.num_samples, config.seed),
        crop=config.crop,
        batch_size=config.batch_size,
        rank=rank,
        world_size=world_size,
    )
    return Loader(index, captions, config, plan)


def open_evaluation_loader(index_dir: Path | str, config: LoaderConfig) -> Loader:
    """Open a loader that goes once through an index: centre crop, nothing masked, nothing drawn.

    Args:
        index_dir: written by tools/index_shards.py.
        config: sizes are taken from it; its crop and mask are not used.

    Raises:
        FileNotFoundError: no index there, or a shard has gone.
        ValueError: shards changed since they were indexed.
    """
    index = open_index(Path(index_dir))
    index.check_shards()
    captions = index.captions(config.caption_source)
    plan = EvaluationPlan(index=index, captions=captions, batch_size=config.batch_size)
    return Loader(index, captions, replace(config, mask=MaskConfig(kind="none")), plan)
