"""Makes the batch of any one step: read, decode, cut into patches, mask, pack.

It holds no place in the order of the samples; `pipeline.loader` does, and says which step is next.

Legend: B pairs of this rank, N patches of an image, S side of an image.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.pipeline.augment import augment
from tessera.pipeline.batch import DenseBatch, PackedBatch, pad_tokens
from tessera.pipeline.decoding import open_decoder
from tessera.pipeline.device_copy import upload
from tessera.pipeline.index import Index
from tessera.pipeline.index.caption_mix import CaptionMix
from tessera.pipeline.index.chained_index import ChainedIndex
from tessera.pipeline.index.embedding_mix import EmbeddingMix
from tessera.pipeline.loader_config import LoaderConfig
from tessera.pipeline.mask_updates import MaskWeights
from tessera.pipeline.masking import ClusterMask, MaskStrategy, PatchEmbedding
from tessera.pipeline.masking.packing import pack_visible
from tessera.pipeline.order import Visits
from tessera.pipeline.patches import normalise, patchify
from tessera.pipeline.plan import Plan
from tessera.pipeline.printable import printable
from tessera.pipeline.reader import ShardReader
from tessera.pipeline.stages import Fetched, Patches, Preview
from tessera.pipeline.stats import LoaderStats

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 8
"""So many samples in a row may be bad in one slot before the data, not a sample, is the fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSample:
    """A sample that was indexed as good and could not be read or decoded."""

    key: str
    """Its key in the index."""
    shard: str
    """Path of its shard."""
    reason: str
    """What the reader or the decoder said."""
    replaced_by: str
    """Key of the sample tried in its place at its latest visit; empty if it was left out."""

    @property
    def instead(self) -> str:
        """What is served in its place, for people."""
        return f"{self.replaced_by} comes in its place" if self.replaced_by else "left out"

    def __str__(self) -> str:
        return f"cannot use sample {self.key} of {self.shard} ({self.reason}): {self.instead}"


class Assembler:
    """Turns the plan of a step into a packed batch, and counts what each stage does."""

    def __init__(
        self,
        index: Index | ChainedIndex,
        captions: CaptionMix,
        config: LoaderConfig,
        plan: Plan,
        stats: LoaderStats,
        embeddings: EmbeddingMix | None = None,
    ) -> None:
        """Open the reader and the decoder.

        Args:
            index: where the samples lie.
            captions: texts of the sources in use.
            config: what the batches hold.
            plan: which samples come when, and everything that is drawn for them.
            stats: counted in.
            embeddings: of the same texts, where the batches hold them.
        """
        self._index = index
        self._captions = captions
        self._config = config
        self._plan = plan
        self._stats = stats
        self._text_embeddings = embeddings
        self._embedding = _embedding(config)
        self._mask = self._new_mask()
        self._reader = ShardReader(index, config.num_threads, config.cache)
        self._decoder = open_decoder(
            config.decoder,
            image_size=config.image_size,
            batch_size=config.local_batch_size,
            num_threads=config.num_threads,
            device=config.device,
            graph=config.dali_graph,
        )
        self._decoding = Lock()
        self._calibrating = Lock()

    @property
    def decoder_name(self) -> str:
        """What decodes."""
        return self._decoder.name

    @property
    def mask(self) -> MaskStrategy:
        """The mask in use; one that needs a threshold has found it.

        Every rank goes through the same first samples of the run, so all find the same threshold
        without a word to each other, and a resumed run finds it again.
        """
        with self._calibrating:
            mask = self._mask
            if isinstance(mask, ClusterMask) and mask.needs_calibration:
                parts = map(self._calibration_part, self._plan.calibration())
                mask = mask.calibrate(mask.similarity(part.patches, part.noise) for part in parts)
                logger.info("mask threshold %.4f", mask.threshold)
                self._mask = mask
            return mask

    def set_patch_embedding(self, weights: MaskWeights) -> None:
        """Hand the mask the model's patch projection; to be called where batches are made."""
        assert self._embedding is not None
        weights.receive()
        with self._calibrating:
            self._embedding.update(weights.weight, weights.step, weights.positions)
            self._mask = self._new_mask()

    def fetch(self, step: int) -> Fetched | None:
        """Read the files of a step; None where the plan has no such step."""
        visits = self._plan.visits(step)
        if visits is None:
            return None
        return Fetched(step=step, visits=visits, encoded=self._read(visits))

    def expect(self, step: int) -> None:
        """Have remote shards fetched that a step and those behind it will read."""
        self._reader.expect(self._plan.upcoming_shards(step))

    def assemble(self, fetched: Fetched) -> PackedBatch | DenseBatch:
        """Everything from the files of a step to its batch."""
        shown = self.show(fetched)
        pack = self._dense if self._config.output == "dense" else self._pack
        with self._stats.pack.working(len(shown.images)):
            batch = pack(shown)
        self._stats.pack.num_bytes += batch.num_bytes
        return batch

    def show(self, fetched: Fetched) -> Preview:
        """Everything from the files of a step to its mask."""
        mask = self.mask
        made = self._cut(*self._decode_or_replace(fetched))
        with self._stats.mask.working(len(made.images)):
            visible = mask.visible(made.patches, made.noise)
        self._stats.mask.num_bytes += visible.numel()
        drawn = self._plan.draw_captions(made.visits)
        self._stats.num_missing_captions += drawn.num_missing
        self._stats.num_short_captions += drawn.num_short
        tokens, text_offsets = self._tokens(made.visits, drawn.rows)
        return Preview(
            images=made.images,
            patches=made.patches,
            noise=made.noise,
            visible=visible,
            visits=made.visits,
            caption_rows=drawn.rows,
            tokens=tokens,
            text_offsets=text_offsets,
        )

    def give_up(self) -> None:
        """Have reads under way end soon, in an error if need be; `close` follows."""
        self._reader.give_up()

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def _new_mask(self) -> MaskStrategy:
        mask = self._config.mask.build()
        if isinstance(mask, ClusterMask):
            size = self._config.group_size
            return replace(mask, embedding=self._embedding, group_size=size)
        return mask

    def _calibration_part(self, visits: Visits) -> Patches:
        images, failures = self._decode(visits, self._read(visits))
        self._report(visits, failures, others=None)
        return self._cut(*_without(failures, images, visits))

    def _read(self, visits: Visits) -> list[bytes | OSError]:
        stage = self._stats.read
        with stage.working(len(visits.sample_ids)):
            encoded = self._reader.read(visits.sample_ids)
        stage.num_bytes += sum(len(each) for each in encoded if isinstance(each, bytes))
        return encoded

    def _decode_or_replace(self, fetched: Fetched) -> tuple[Tensor, Visits]:
        """Images of a step; bad samples are replaced, or left out where the plan says so."""
        visits = fetched.visits
        images, failures = self._decode(visits, fetched.encoded)
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            if not failures:
                return images, visits
            places = np.array(sorted(failures), dtype=np.int64)
            others = self._plan.replacements(fetched.step, places, attempt)
            self._report(visits, failures, others)
            if others is None:
                return _without(failures, images, visits)
            decoded, failed_again = self._decode(others, self._read(others))
            images.index_copy_(0, upload(torch.from_numpy(places), images.device), decoded)
            visits = visits.with_others(places, others)
            failures = {int(places[n]): reason for n, reason in failed_again.items()}
        if failures:
            raise self._broken_data()
        return images, visits

    def _decode(
        self, visits: Visits, encoded: list[bytes | OSError]
    ) -> tuple[Tensor, dict[int, str | OSError]]:
        """Images [B, S, S, 3], and by place what the reader or the decoder said of bad ones."""
        windows = self._plan.windows(visits)
        data = [b"" if isinstance(each, OSError) else each for each in encoded]
        stage = self._stats.decode
        # A preview may be asked for while the threads work ahead, and DALI hangs if called twice.
        with self._decoding, stage.working(len(data)):
            plain = self._index.plain[visits.sample_ids]
            decoded = self._decoder.decode(data, windows, plain)
        stage.num_bytes += decoded.images.numel()
        unread = {place: each for place, each in enumerate(encoded) if isinstance(each, OSError)}
        return decoded.images, {**decoded.failures, **unread}

    def _report(
        self, visits: Visits, failures: dict[int, str | OSError], others: Visits | None
    ) -> None:
        """Count bad samples, and log each of them the first time, with what came in its place."""
        for number, place in enumerate(sorted(failures)):
            reason, sample_id = failures[place], int(visits.sample_ids[place])
            stage = self._stats.read if isinstance(reason, OSError) else self._stats.decode
            stage.num_replaced += 1
            bad = BadSample(
                key=self._index.keys([sample_id])[0],
                shard=self._index.shards[self._index.shard[sample_id]].location,
                reason=str(reason),
                replaced_by="" if others is None else self._index.keys(others.sample_ids)[number],
            )
            if sample_id not in self._stats.bad_samples:
                logger.warning("%s", printable(str(bad)))
            self._stats.bad_samples[sample_id] = bad

    def _broken_data(self) -> RuntimeError:
        last = list(self._stats.bad_samples.values())[-1]
        return RuntimeError(
            f"{_MAX_ATTEMPTS} samples in a row could not be decoded, the last one {last.key} of "
            f"{last.shard} ({last.reason}): the shards are damaged or were changed after indexing; "
            "index them again with tools/index_shards.py"
        )

    def _cut(self, images: Tensor, visits: Visits) -> Patches:
        """Augmented images as patches, with the noise for their masks."""
        config, stage = self._config, self._stats.patchify
        with stage.working(len(images)):
            if config.augment.active:
                images = augment(images, self._plan.augmentation(visits), config.augment)
            patches = patchify(images, config.patch_size)
        stage.num_bytes += patches.numel()
        with self._stats.mask.working(0):
            noise = self._plan.noise(visits, config.num_patches, images.device)
        return Patches(images=images, patches=patches, noise=noise, visits=visits)

    def _tokens(
        self, visits: Visits, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids of the texts at `rows`, cut to the context length."""
        if self._config.tokenise:
            return self._config.tokenise(self._captions.texts(rows))
        length = self._config.context_length
        needed = self._captions.draws_needed(rows, length)
        draws = self._plan.text_draws(visits, needed * self._captions.texts_per_sample)
        draws = draws.reshape(len(rows), needed)
        return self._captions.pack(rows, length, draws)

    def _pack(self, shown: Preview) -> PackedBatch:
        patches, positions, image_offsets = pack_visible(
            shown.patches, shown.visible, self.mask.num_visible(*shown.visible.shape)
        )
        stored = self._text_embeddings
        text_offsets = torch.from_numpy(shown.text_offsets)
        return PackedBatch(
            patches=patches,
            positions=positions,
            image_offsets=image_offsets,
            tokens=torch.from_numpy(shown.tokens),
            text_offsets=text_offsets,
            sample_ids=torch.from_numpy(shown.visits.sample_ids),
            text_embeddings=torch.from_numpy(stored.lookup(shown.caption_rows)) if stored else None,
            host_grids=_grids(shown.images, self._config.patch_size),
        )

    def _dense(self, shown: Preview) -> DenseBatch:
        config, stored = self._config, self._text_embeddings
        images = shown.images
        if config.pixels == "float":
            images = normalise(images.flatten(1)).view(images.shape)
        tokens, offsets = torch.from_numpy(shown.tokens), torch.from_numpy(shown.text_offsets)
        if config.texts == "padded":
            tokens, offsets = pad_tokens(tokens, offsets, config.context_length), None
        elif config.texts == "raw":
            tokens, offsets = None, None
        raw = config.texts == "raw"
        return DenseBatch(
            images=images.permute(0, 3, 1, 2).contiguous(),
            visible=None if config.mask.kind == "none" else shown.visible,
            tokens=tokens,
            text_offsets=offsets,
            texts=tuple(self._captions.texts(shown.caption_rows)) if raw else (),
            sample_ids=torch.from_numpy(shown.visits.sample_ids),
            text_embeddings=torch.from_numpy(stored.lookup(shown.caption_rows)) if stored else None,
        )


def _embedding(config: LoaderConfig) -> PatchEmbedding | None:
    mask = config.mask
    if not mask.uses_embedding:
        return None
    return PatchEmbedding(
        num_steps=config.num_steps, first=mask.embedding_first, last=mask.embedding_last
    )


def _grids(images: Tensor, patch_size: int) -> Tensor:
    """[B, 2] int32 in host memory, rows and columns of the patches of images [B, S, S, 3]."""
    grid = [side // patch_size for side in images.shape[1:3]]
    return torch.tensor([grid], dtype=torch.int32).repeat(len(images), 1)


def _without(
    failures: dict[int, str | OSError], images: Tensor, visits: Visits
) -> tuple[Tensor, Visits]:
    good = np.setdiff1d(np.arange(len(images)), list(failures))
    return images[good], visits.take(good)
