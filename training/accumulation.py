"""Large batches on few GPUs: the loss over all features, the model in chunks.

Cached-feature accumulation (GradCache; Gao et al. 2021, section 3.2): the chunks are encoded
without a graph, the loss over all features gives the gradient of each feature, and every chunk is
encoded again with a graph through which its features' gradients flow. The result is the gradient
of the large batch, for the memory of one chunk and a second forward pass.

Shapes: B images of this rank, R texts of each, d length of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from tessera.pipeline import PackedBatch
from tessera.pipeline.masking import MaskStrategy
from tessera.training.parallel import bare, local, unsynchronised


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """What a loss is computed from."""

    images: Tensor
    """[B, d] float32, unit length; the teacher's features while an adapter is distilled."""
    texts: Tensor
    """[B*R, d] float32, unit length, the texts of an image behind each other."""
    scale: Tensor
    """[] logit scale, not its logarithm."""
    bias: Tensor | None
    """[] logit bias, of models that have one."""


LossOf = Callable[[Encoded], Tensor]
"""From the features of all chunks to the loss, a scalar."""


def equal_chunks(mask: MaskStrategy, num_patches: int, chunk_size: int, group_size: int) -> bool:
    """Whether a mask leaves as many patches in every chunk of a batch.

    Args:
        mask: of the loader.
        num_patches: N, patches of a full image.
        chunk_size: images of a chunk.
        group_size: images that share a budget; 0 where the mask has none.
    """
    whole_groups = not group_size or chunk_size % group_size == 0
    return whole_groups and mask.num_visible(chunk_size, num_patches) is not None


def split(batch: PackedBatch, num_chunks: int, *, equal_patches: bool = False) -> list[PackedBatch]:
    """Cut a batch into equal chunks of consecutive pairs, as views.

    The places of the cuts are read from the host's copies of the offsets, never from the model's
    stream. A batch on a GPU without such a copy, which no loader makes, is read and waited for.

    Args:
        batch: of one rank.
        num_chunks: how many.
        equal_patches: every chunk has as many patches (`equal_chunks`), so that the cuts between
            images need no offsets.

    Raises:
        ValueError: the number of pairs is no multiple of `num_chunks`.
    """
    if batch.num_samples % num_chunks:
        raise ValueError(
            f"accumulation {num_chunks} does not divide the {batch.num_samples} pairs of a rank"
        )
    if num_chunks == 1:
        return [batch]
    size = batch.num_samples // num_chunks
    texts = size * batch.texts_per_image
    if equal_patches:
        step = len(batch.patches) // num_chunks
        patch_cuts = [step * number for number in range(num_chunks + 1)]
    else:
        if batch.host_ready is not None:
            batch.host_ready.synchronize()
        patch_cuts = _cuts(batch.host_image_offsets, batch.image_offsets, size)
    token_cuts = _cuts(batch.host_text_offsets, batch.text_offsets, texts)
    return [
        _part(batch, number * size, size, slice(*patches), slice(*tokens))
        for number, (patches, tokens) in enumerate(
            zip(pairwise(patch_cuts), pairwise(token_cuts), strict=True)
        )
    ]


def encode(model: nn.Module, batch: PackedBatch) -> Encoded:
    """Run the model on a batch.

    Args:
        model: from `parallelise`.
        batch: on its device.
    """
    images, texts, scale = model(
        batch.patches,
        batch.positions,
        batch.image_offsets,
        batch.tokens,
        batch.text_offsets,
        batch.text_embeddings,
    )
    bias = bare(model).logit_bias
    return Encoded(
        images=images,
        texts=texts,
        scale=local(scale),
        bias=None if bias is None else local(bias),
    )


def encode_in_chunks(model: nn.Module, chunks: Sequence[PackedBatch]) -> Encoded:
    """Features of all chunks, as leaves without a graph that collect gradients.

    Args:
        model: from `parallelise`.
        chunks: on its device.
    """
    with torch.no_grad():
        parts = [encode(model, chunk) for chunk in chunks]
    bias = parts[0].bias
    return Encoded(
        images=torch.cat([part.images for part in parts]).requires_grad_(),
        texts=torch.cat([part.texts for part in parts]).requires_grad_(),
        scale=parts[0].scale.detach().clone().requires_grad_(),
        bias=None if bias is None else bias.detach().clone().requires_grad_(),
    )


def backward_in_chunks(model: nn.Module, chunks: Sequence[PackedBatch], cached: Encoded) -> None:
    """Carry the gradients of cached features on to the model's parameters.

    Gradients are averaged over ranks once, with the last chunk, which also carries those of the
    scale and the bias.

    Args:
        model: from `parallelise`.
        chunks: as given to `encode_in_chunks`.
        cached: its result, after the loss's backward pass.
    """
    num_images, num_texts = (len(each) // len(chunks) for each in (cached.images, cached.texts))
    for number, chunk in enumerate(chunks):
        is_last = number == len(chunks) - 1
        with nullcontext() if is_last else unsynchronised(model):
            again = encode(model, chunk)
            pairs = [
                (again.images, _gradient(cached.images).split(num_images)[number]),
                (again.texts, _gradient(cached.texts).split(num_texts)[number]),
            ]
            if is_last:
                pairs.append((again.scale, _gradient(cached.scale)))
                if again.bias is not None and cached.bias is not None:
                    pairs.append((again.bias, _gradient(cached.bias)))
            wanted = [(value, grad) for value, grad in pairs if value.requires_grad]
            torch.autograd.backward([v for v, _ in wanted], [g for _, g in wanted])


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _part(batch: PackedBatch, first: int, count: int, patches: slice, tokens: slice) -> PackedBatch:
    """Pairs `first` .. `first + count - 1`, which own these rows."""
    per_image = batch.texts_per_image
    texts = slice(first * per_image, (first + count) * per_image)
    embeddings = batch.text_embeddings
    return PackedBatch(
        patches=batch.patches[patches],
        positions=batch.positions[patches],
        image_offsets=batch.image_offsets[first : first + count + 1] - patches.start,
        tokens=batch.tokens[tokens],
        text_offsets=batch.text_offsets[texts.start : texts.stop + 1] - tokens.start,
        sample_ids=batch.sample_ids[first : first + count],
        text_embeddings=None if embeddings is None else embeddings[texts],
    )


def _cuts(in_host_memory: Tensor | None, offsets: Tensor, size: int) -> list[int]:
    """First rows of every `size`-th sequence, and the number of rows."""
    return (offsets if in_host_memory is None else in_host_memory)[::size].tolist()
