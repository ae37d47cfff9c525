"""The similarity matrix in tiles: its softmax forward, its gradient backward, never the whole.

Every loss here is a function of the cosines c_ij of image i and text j whose derivative by c_ij,
apart from the diagonal, follows from c_ij and a few numbers for each row and each column. So a
first walk over the tiles finds those numbers (a running log-sum-exp, after Milakov and
Gimelshein, arXiv 1805.02867), and a second one computes the tiles again, turns each into
derivatives and multiplies them onto the features. Memory is that of the features and of a few
tiles. The diagonal, the positives, is left to each loss: late in training its derivative is a
small difference of numbers near 1, which has a form without cancellation.

With several ranks each has two strips of the matrix: its images against all texts and all
images against its texts. Both together hold every derivative by its own features, once the
numbers of all rows and columns are known, 4 * B values. Nothing of the size of the features is
exchanged backward (the trick of FastCLIP, arXiv 2407.01445, here for all losses).

Shapes: W ranks, b pairs on each, B = W * b pairs in all, d length of a feature, [r, c] a tile
of r images and c texts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tessera.model.losses.ranks import Ranks

Weigh = Callable[[Tensor, slice, slice], Tensor]
"""From cosines [r, c], and which images and which texts of all B they belong to, the
derivatives [r, c] of a loss by them; those of positives are not used."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A piece of the similarity matrix."""

    images: slice
    """Its rows, of all B images."""
    texts: slice
    """Its columns, of all B texts."""
    cosines: Tensor
    """[r, c] float32."""
    of_own_images: bool
    """Whether it belongs to the strip of this rank's images."""
    of_own_texts: bool
    """Whether it belongs to the strip of this rank's texts; one rank alone has one strip."""

    @property
    def positives(self) -> int:
        """The diagonal of the tile that holds matching pairs; it may lie outside."""
        return self.images.start - self.texts.start


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Anchors:
    """What the softmax over its negatives gives for each anchor of this rank."""

    log_sum_exp: Tensor
    """[b], over the scaled cosines with the negatives."""
    mean_cosine: Tensor
    """[b], cosine expected under the softmax; NaN where it was not asked for."""


LeaveOut = Callable[[Tensor, Tile, float], None]
"""Fills the places of a tile that hold no negative; `Pairs.without_others`."""


class Pairs:
    """This rank's pairs among those of all ranks, cut into tiles."""

    def __init__(
        self,
        images: Tensor,
        texts: Tensor,
        ranks: Ranks,
        tile_size: int,
        *,
        all_images: Tensor | None = None,
        captions: Tensor | None = None,
        ignore_same: bool = False,
    ) -> None:
        """Gather the features; a collective.

        Args:
            images: [b, d] float32.
            texts: [b, d] float32.
            ranks: who shares the global batch.
            tile_size: most images and texts in a tile; 0 for no limit.
            all_images: [B, d] images of all ranks, where they were gathered before.
            captions: [b] int64, equal where captions are; needed for `same`.
            ignore_same: leave pairs with equal captions out of every softmax and gradient.
        """
        self.images = images.detach()
        self.texts = texts.detach()
        self.all_images = ranks.gather(images) if all_images is None else all_images
        self.all_texts = ranks.gather(texts)
        self._captions = None if captions is None else ranks.gather(captions)
        self._ignore_same = ignore_same
        self.count = len(self.all_images)
        self.first = ranks.rank * len(images)
        self._tile_size = tile_size or self.count
        own, every = range(self.first, self.first + len(images)), range(self.count)
        # rows, columns, of own images, of own texts
        self._strips = (
            [(own, own, True, True)]
            if ranks.alone
            else [(own, every, True, False), (every, own, False, True)]
        )

    def own(self, values: Tensor) -> Tensor:
        """This rank's [b, ...] of values for all pairs [B, ...]."""
        return values[self.first : self.first + len(self.images)]

    def softmax(
        self, image_scale: Tensor, text_scale: Tensor, *, with_mean: bool = False
    ) -> tuple[Anchors, Anchors]:
        """Softmax of every own image over all other texts, of every own text over other images.

        Args:
            image_scale: [b] or [], factor on the cosines of each image.
            text_scale: [b] or [], factor on the cosines of each text.
            with_mean: whether to find the expected cosines too.
        """
        images = _RunningSoftmax(image_scale.expand(len(self.images)), with_mean)
        texts = _RunningSoftmax(text_scale.expand(len(self.texts)), with_mean)
        for tile in self.tiles():
            if tile.of_own_images:
                images.add(self._local(tile.images), tile, 1, self.without_others)
            if tile.of_own_texts:
                texts.add(self._local(tile.texts), tile, 0, self.without_others)
        return images.result(), texts.result()

    def gradients(self, weigh: Weigh) -> tuple[Tensor, Tensor]:
        """Derivatives by the own features, [b, d] each, as far as negatives bring them."""
        by_images, by_texts = torch.zeros_like(self.images), torch.zeros_like(self.texts)
        for tile in self.tiles():
            weights = weigh(tile.cosines, tile.images, tile.texts)
            self.without_others(weights, tile, 0)
            if tile.of_own_images:
                by_images[self._local(tile.images)].addmm_(weights, self.all_texts[tile.texts])
            if tile.of_own_texts:
                by_texts[self._local(tile.texts)].addmm_(weights.T, self.all_images[tile.images])
        return by_images, by_texts

    def same(self, images: slice, texts: slice) -> Tensor:
        """[r, c] bool, other pairs with the same caption; False at the positives."""
        assert self._captions is not None
        same = self._captions[images, None] == self._captions[None, texts]
        same.diagonal(images.start - texts.start).fill_(False)
        return same

    def without_others(self, values: Tensor, tile: Tile, fill: float) -> None:
        """Fill the places of a tile [r, c] that hold no negative."""
        values.diagonal(tile.positives).fill_(fill)
        if self._ignore_same:
            values.masked_fill_(self.same(tile.images, tile.texts), fill)

    def log_num_negatives(self) -> Tensor | float:
        """Logarithm of the negatives of each of this rank's anchors: [b, 1], or one for all."""
        if not self._ignore_same:
            return math.log(self.count - 1)
        return (self.count - 1 - self.sums_of_same()[1]).clamp_min(1).log()[:, None]

    def sums_of_same(self) -> tuple[Tensor, Tensor]:
        """Of this rank's pairs, the cosines with other pairs of the same caption.

        Returns:
            [b, 2] sums of each image with their texts and of each text with their images, and [b]
            how many such pairs there are.
        """
        sums = torch.zeros(len(self.images), 2, device=self.images.device)
        counts = sums.new_zeros(len(sums))
        for tile in self.tiles():
            same = self.same(tile.images, tile.texts)
            cosines = tile.cosines * same
            if tile.of_own_images:
                sums[self._local(tile.images), 0] += cosines.sum(1)
                counts[self._local(tile.images)] += same.sum(1)
            if tile.of_own_texts:
                sums[self._local(tile.texts), 1] += cosines.sum(0)
        return sums, counts

    def tiles(self) -> Iterator[Tile]:
        """All tiles of this rank's strips."""
        for rows, columns, of_own_images, of_own_texts in self._strips:
            for images in _pieces(rows, self._tile_size):
                for texts in _pieces(columns, self._tile_size):
                    yield Tile(
                        images=images,
                        texts=texts,
                        cosines=self.all_images[images] @ self.all_texts[texts].T,
                        of_own_images=of_own_images,
                        of_own_texts=of_own_texts,
                    )

    def _local(self, places: slice) -> slice:
        return slice(places.start - self.first, places.stop - self.first)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxWeights:
    """exp(scale_i c_ij - shift_i) of the image anchors plus the same of the text anchors."""

    image_scale: Tensor
    """[B], factor on the cosines of each image."""
    image_shift: Tensor
    """[B], what is subtracted in the exponent for each image."""
    text_scale: Tensor
    """[B], factor on the cosines of each text."""
    text_shift: Tensor
    """[B], what is subtracted in the exponent for each text."""

    def __call__(self, cosines: Tensor, images: slice, texts: slice) -> Tensor:
        """Weights [r, c] of a tile; see `Weigh`."""
        rows = cosines * self.image_scale[images, None]
        rows.sub_(self.image_shift[images, None]).exp_()
        columns = cosines * self.text_scale[None, texts]
        return rows.add_(columns.sub_(self.text_shift[None, texts]).exp_())


class _RunningSoftmax:
    """Softmax statistics of b anchors whose candidates come tile by tile."""

    def __init__(self, scale: Tensor, with_mean: bool) -> None:
        self._scale = scale
        # Finite, so that a tile of nothing but a positive adds exp(-inf - lowest) = 0.
        self._largest = torch.full_like(scale, torch.finfo(scale.dtype).min)
        self._total = torch.zeros_like(scale)
        self._cosines = torch.zeros_like(scale) if with_mean else None

    def add(self, anchors: slice, tile: Tile, dim: int, leave_out: LeaveOut) -> None:
        """Take in some candidates of some anchors; `dim` of the tile is the candidates'."""
        logits = tile.cosines * self._scale[anchors].unsqueeze(dim)
        leave_out(logits, tile, -torch.inf)
        largest = torch.maximum(self._largest[anchors], logits.amax(dim))
        shrink = (self._largest[anchors] - largest).exp_()
        terms = logits.sub_(largest.unsqueeze(dim)).exp_()
        self._largest[anchors] = largest
        self._total[anchors] = self._total[anchors] * shrink + terms.sum(dim)
        if self._cosines is not None:
            expected = terms.mul_(tile.cosines).sum(dim)
            self._cosines[anchors] = self._cosines[anchors] * shrink + expected

    def result(self) -> Anchors:
        # The largest term is 1, so a smaller total is that of an anchor without a negative.
        total = self._total.clamp_min(1)
        mean = self._largest * torch.nan if self._cosines is None else self._cosines / total
        return Anchors(log_sum_exp=self._largest + self._total.log(), mean_cosine=mean)


def with_gradients(
    value: Tensor, inputs: tuple[Tensor, ...], gradients: Callable[[], tuple[Tensor, ...]]
) -> Tensor:
    """A value that was computed without a graph, made differentiable.

    Args:
        value: [].
        inputs: what it depends on.
        gradients: gives the derivative by each of the inputs; called backward.
    """
    return _Deferred.apply(gradients, value, *inputs)  # pyright: ignore[reportReturnType]


class _Deferred(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        gradients: Callable[[], tuple[Tensor, ...]],
        value: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        del inputs
        ctx.gradients = gradients  # pyright: ignore[reportAttributeAccessIssue]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradient.device.type, enabled=False):
            found = ctx.gradients()  # pyright: ignore[reportAttributeAccessIssue]
            return (None, None, *(gradient * each for each in found))


def _pieces(places: range, size: int) -> Iterator[slice]:
    for start in range(places.start, places.stop, size):
        yield slice(start, min(start + size, places.stop))
