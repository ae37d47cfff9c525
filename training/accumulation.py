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

import torch
from torch import Tensor, nn

from pipeline import PackedBatch
from training.parallel import bare, local, unsynchronised


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
EncodeChunk = Callable[[nn.Module, PackedBatch], Encoded]
"""`encode`, under the precision of the run."""


def split(batch: PackedBatch, num_chunks: int) -> list[PackedBatch]:
    """Cut a batch into equal chunks of consecutive pairs, as views.

    A loader that was told of the chunks says where they begin (`PackedBatch.cuts`). Where it was
    not, offsets are read, and a batch on a GPU stops it.

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
    known = batch.cuts
    cuts = known if known and len(known) == num_chunks + 1 else _cuts(batch, size)
    return [
        _part(batch, number * size, (number + 1) * size, cuts[number], cuts[number + 1])
        for number in range(num_chunks)
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


def encode_in_chunks(
    model: nn.Module, chunks: Sequence[PackedBatch], encode_chunk: EncodeChunk
) -> Encoded:
    """Features of all chunks, as leaves without a graph that collect gradients.

    Args:
        model: from `parallelise`.
        chunks: on its device.
        encode_chunk: `encode`, under the precision of the run.
    """
    with torch.no_grad():
        parts = [encode_chunk(model, chunk) for chunk in chunks]
    bias = parts[0].bias
    return Encoded(
        images=torch.cat([part.images for part in parts]).requires_grad_(),
        texts=torch.cat([part.texts for part in parts]).requires_grad_(),
        scale=parts[0].scale.detach().clone().requires_grad_(),
        bias=None if bias is None else bias.detach().clone().requires_grad_(),
    )


def backward_in_chunks(
    model: nn.Module, chunks: Sequence[PackedBatch], cached: Encoded, encode_chunk: EncodeChunk
) -> None:
    """Carry the gradients of cached features on to the model's parameters.

    Gradients are averaged over ranks once, with the last chunk, which also carries those of the
    scale and the bias.

    Args:
        model: from `parallelise`.
        chunks: as given to `encode_in_chunks`.
        cached: its result, behind the loss's backward pass.
        encode_chunk: as given to `encode_in_chunks`.
    """
    num_images, num_texts = (len(each) // len(chunks) for each in (cached.images, cached.texts))
    for number, chunk in enumerate(chunks):
        is_last = number == len(chunks) - 1
        with nullcontext() if is_last else unsynchronised(model):
            again = encode_chunk(model, chunk)
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


def _cuts(batch: PackedBatch, size: int) -> list[tuple[int, int]]:
    """As `PackedBatch.cuts`, read from the offsets."""
    images = batch.image_offsets[::size].tolist()
    texts = batch.text_offsets[:: size * batch.texts_per_image].tolist()
    return list(zip(images, texts, strict=True))


def _part(
    batch: PackedBatch, first: int, last: int, start: tuple[int, int], stop: tuple[int, int]
) -> PackedBatch:
    """Pairs first .. last - 1, whose patches and tokens lie between two cuts."""
    patches, tokens = (slice(*bounds) for bounds in zip(start, stop, strict=True))
    per_image = batch.texts_per_image
    texts = slice(first * per_image, last * per_image)
    embeddings = batch.text_embeddings
    return PackedBatch(
        patches=batch.patches[patches],
        positions=batch.positions[patches],
        image_offsets=batch.image_offsets[first : last + 1] - start[0],
        tokens=batch.tokens[tokens],
        text_offsets=batch.text_offsets[texts.start : texts.stop + 1] - start[1],
        sample_ids=batch.sample_ids[first:last],
        text_embeddings=None if embeddings is None else embeddings[texts],
    )
