"""Unit features of whole sets, made by all processes together, in float32.

Every process encodes whole batches of its own, cut where a process alone would cut them, so that
features do not depend on how many there are. They meet on rank 0 once, when a set is done: no
process waits for another between two batches, and a rank without any batch is no special case.

Legend: M pictures of a set, K texts, d length of a feature.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tessera.evaluation.image_sets import ImageSet, decode, evaluation_transform
from tessera.evaluation.views import ViewConfig
from tessera.model import Clip
from tessera.model.own_tokens import own_tokens
from tessera.pipeline.index.captions import CaptionTable
from tessera.pipeline.index.tokenizer import tokenize_prompts
from tessera.pipeline.masking import pack_visible
from tessera.pipeline.patches import patchify

logger = logging.getLogger(__name__)

T = TypeVar("T")

Progress = Callable[[int], object]
"""Called with the number of pictures or texts done since the last call."""


class Ranks(Protocol):
    """The processes that share the work; training.distributed.Ranks is one."""

    @property
    def rank(self) -> int:
        """Number of this process."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...

    def gather(self, value: T) -> list[T]:
        """The values of all processes in their order, on rank 0; an empty list on the others."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """A process alone."""

    rank: int = 0
    """Its number."""
    world_size: int = 1
    """How many there are."""

    def gather(self, value: T) -> list[T]:
        """The value alone."""
        return [value]


class TextFeatures(Protocol):
    """How a model turns texts into features."""

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """[K, d] features of texts that are in no index, before unit normalisation."""
        ...

    def of_captions(self, table: CaptionTable, rows: NDArray[np.int64]) -> Tensor:
        """[K, d] features of texts of an index, before unit normalisation."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTexts:
    """Features of a text tower that reads tokens."""

    clip: Clip
    """The model."""

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """[K, d] features of texts that are tokenised here."""
        own = own_tokens(self.clip.config.text)
        if own:
            return self._encode(*own(texts))
        return self._encode(*tokenize_prompts(texts, self.clip.config.text.context_length))

    def of_captions(self, table: CaptionTable, rows: NDArray[np.int64]) -> Tensor:
        """[K, d] features of texts that the index has tokenised."""
        if not self.clip.config.text.uses_clip_bpe:
            return self.of_texts(table.texts(rows))
        return self._encode(*table.pack(rows, self.clip.config.text.context_length))

    def _encode(self, tokens: NDArray[np.int32], offsets: NDArray[np.int32]) -> Tensor:
        device = self.clip.logit_scale.device
        return self.clip.encode_text(
            torch.from_numpy(tokens).to(device), torch.from_numpy(offsets).to(device)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFeatures:
    """The pictures of a set in its own order, undecodable ones left out; empty but on rank 0."""

    features: Tensor
    """[M, d] float32, unit length, on the CPU."""
    places: NDArray[np.int64]
    """[M] of the pictures in their set, ascending."""
    sample_ids: NDArray[np.int64]
    """[M] the set's `ids` of them: rows of the index, where there is one."""
    num_bad: int
    """Pictures of the set that could not be decoded."""


@dataclass(kw_only=True)
class Encoder:
    """A model ready to be evaluated; remembers the pictures of sets that come again."""

    clip: Clip
    """In evaluation mode; runs where its parameters are."""
    batch_size: int = 128
    """Pictures or texts encoded at once."""
    num_threads: int = 1
    """Threads that decode."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """What is shown of each picture."""
    ranks: Ranks = field(default_factory=OneProcess)
    """This process among those that share the work."""
    texts: TextFeatures | None = None
    """How texts become features; None takes the model's text tower."""
    progress: Progress | None = None
    """Told how many pictures and texts are done."""
    _known: dict[str, ImageFeatures] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this process gets the features of all."""
        return self.ranks.rank == 0

    @torch.inference_mode()
    def images(self, key: str, images: ImageSet) -> ImageFeatures:
        """Features of all pictures of a set; every process must ask, and the set is closed.

        Args:
            key: the same for the same pictures, which are encoded once.
            images: the set.

        Raises:
            ValueError: no picture could be decoded.
        """
        try:
            if key not in self._known:
                self._known[key] = self._encode(key, images)
        finally:
            images.close()
        return self._known[key]

    @torch.inference_mode()
    def prompts(self, texts: Sequence[str]) -> Tensor:
        """[K, d] unit features of texts on rank 0, [0, d] elsewhere; every process must ask."""
        own = self.texts or TokenTexts(clip=self.clip)
        return self._together(len(texts), lambda part: own.of_texts(texts[part]))

    @torch.inference_mode()
    def captions(self, table: CaptionTable, rows: NDArray[np.int64]) -> Tensor:
        """As `prompts`, of texts of an index."""
        own = self.texts or TokenTexts(clip=self.clip)
        return self._together(len(rows), lambda part: own.of_captions(table, rows[part]))

    def _together(self, count: int, encode: Callable[[slice], Tensor]) -> Tensor:
        mine = [torch.empty(0, self.clip.config.embed_dim)]
        for start in self._batches(count):
            part = slice(start, min(start + self.batch_size, count))
            mine.append(F.normalize(encode(part).float(), dim=1).cpu())
            self._tell(part.stop - part.start)
        return torch.cat([mine[0], *self.ranks.gather(torch.cat(mine))])

    def _encode(self, key: str, images: ImageSet) -> ImageFeatures:
        features, places = [torch.empty(0, self.clip.config.embed_dim)], []
        num_bad = 0
        for batch, decoded in self._decoded(images):
            good = [n for n, each in enumerate(decoded) if isinstance(each, Tensor)]
            for place, problem in zip(batch.tolist(), decoded, strict=True):
                if isinstance(problem, str):
                    logger.warning("%s is left out: %s", images.name(place), problem)
            num_bad += len(batch) - len(good)
            if good:
                pixels = torch.stack([each for each in decoded if isinstance(each, Tensor)])
                features.append(self._of_pixels(pixels, images.ids[batch[good]]))
                places.append(batch[good])
            self._tell(len(batch))
        own = (torch.cat(features), np.concatenate([np.empty(0, np.int64), *places]), num_bad)
        parts = self.ranks.gather(own)
        found = np.concatenate([np.empty(0, np.int64), *(part[1] for part in parts)])
        if parts and not len(found):
            raise ValueError(f"{key}: no picture of {len(images.ids)} could be decoded")
        return ImageFeatures(
            features=torch.cat([features[0], *(part[0] for part in parts)]),
            places=found,
            sample_ids=images.ids[found],
            num_bad=sum(part[2] for part in parts),
        )

    def _of_pixels(self, pixels: Tensor, ids: NDArray[np.int64]) -> Tensor:
        """[B, S, S, 3] normalised pixels to [B, d] unit features; mean over views, if several."""
        patches = patchify(
            pixels.to(self.clip.logit_scale.device), self.clip.config.vision.patch_size
        )
        features = []
        for visible in self.views.visible(patches, ids):
            encoded = self.clip.encode_image(*pack_visible(patches, visible, int(visible.sum())))
            features.append(F.normalize(encoded.float(), dim=1))
        mean = features[0] if len(features) == 1 else torch.stack(features).mean(dim=0)
        return (mean if len(features) == 1 else F.normalize(mean, dim=1)).cpu()

    def _decoded(self, images: ImageSet) -> Iterator[tuple[NDArray[np.int64], list[Tensor | str]]]:
        """Batches of this process: places, and each picture's pixels or what is wrong with it.

        While the model works on one batch, threads decode the next.
        """
        transform = evaluation_transform(self.clip.config)
        waiting: tuple[NDArray[np.int64], list[Future[Tensor | str]]] | None = None
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as pool:
            for start in self._batches(len(images.ids)):
                batch = np.arange(start, min(start + self.batch_size, len(images.ids)))
                begun = [pool.submit(decode, data, transform) for data in images.read(batch)]
                if waiting:
                    yield waiting[0], [each.result() for each in waiting[1]]
                waiting = (batch, begun)
            if waiting:
                yield waiting[0], [each.result() for each in waiting[1]]

    def _batches(self, count: int) -> list[int]:
        """First places of this process's batches: a stretch of all batches there are."""
        starts = np.arange(0, count, self.batch_size)
        return np.array_split(starts, self.ranks.world_size)[self.ranks.rank].tolist()

    def _tell(self, count: int) -> None:
        if self.progress:
            self.progress(count)
