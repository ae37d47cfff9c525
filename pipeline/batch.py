"""The contract between the pipeline and everything behind it: one batch, packed or dense.

Legend: B images on this rank, R captions of each (1 but for losses over several), N patches of a
full image, T visible patches of all B images, U text tokens of all B*R captions, L tokens of a
padded caption, E length of a sentence embedding, p patch side and S image side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from tessera.pipeline.patches import unpatchify


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFields:
    """What any batch does with its tensors."""

    sample_ids: Tensor
    """[B] int64, rows of the index: provenance, per-sample state, audits."""

    @property
    def num_samples(self) -> int:
        """B, images in this batch."""
        return len(self.sample_ids)

    @property
    def num_bytes(self) -> int:
        """Bytes that cross to the model's device."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`; from pinned memory to CUDA the host does not wait."""
        return replace(self, **self._tensors_on(device))

    def pin_memory(self) -> Self:
        """The same batch with all that lies on the CPU in page-locked memory."""
        return replace(
            self, **{n: t if t.is_cuda else t.pin_memory() for n, t in self.tensors().items()}
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the batch's CUDA memory from other uses until what `stream` has queued is done."""
        for tensor in self.tensors().values():
            tensor.record_stream(stream)

    def _tensors_on(self, device: torch.device | str) -> dict[str, Tensor]:
        # The other way it has to wait: the host would read what has not come yet.
        ahead = torch.device(device).type == "cuda"
        return {name: t.to(device, non_blocking=ahead) for name, t in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there and travel to the model's device, by name."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if not field.name.startswith("host_")
        }
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseBatch(TensorFields):
    """What one rank hands to a trainer of whole images (`LoaderConfig.output`)."""

    images: Tensor
    """[B, 3, S, S], red, green, blue: uint8, or float32 normalised as CLIP's (`pixels`)."""
    visible: Tensor | None
    """[B, N] bool, patches that the mask leaves, row-major; None where nothing is masked. The
    images are whole."""
    tokens: Tensor | None
    """[U] int32 as in `PackedBatch`; with `texts` "padded", [B*R, L] int64, zeros at the end, as
    open_clip's tokenizer gives them; with "raw", None."""
    text_offsets: Tensor | None
    """[B*R+1] int32, with `texts` "tokens"; otherwise None."""
    texts: tuple[str, ...]
    """The B*R captions, with `texts` "raw"; otherwise empty."""
    text_embeddings: Tensor | None = None
    """[B*R, E] float16, stored embeddings of the same captions; None where the loader has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch(TensorFields):
    """What one rank hands to the model: visible patches and real tokens only, end to end."""

    patches: Tensor
    """[T, 3*p*p] uint8, visible patches of all images, image after image; each (y, x, channel)."""
    positions: Tensor
    """[T] int32, place of each patch in its image's grid, row-major, 0 .. N-1."""
    image_offsets: Tensor
    """[B+1] int32, image i owns patches[image_offsets[i]:image_offsets[i+1]]."""
    tokens: Tensor
    """[U] int32, text token ids, caption after caption, SOT and EOT included, no padding."""
    text_offsets: Tensor
    """[B*R+1] int32, caption i owns tokens[text_offsets[i]:text_offsets[i+1]]; image i owns the
    captions i*R up to i*R + R."""
    text_embeddings: Tensor | None = None
    """[B*R, E] float16, stored embeddings of the same captions; None where the loader has none."""
    host_grids: Tensor | None = None
    """[B, 2] int32 in host memory, rows and columns of each image's patches; None in a batch that
    no loader made."""
    host_image_offsets: Tensor | None = None
    """`image_offsets` in host memory, of a batch that a loader hands out on a GPU; None elsewhere.
    Wait for `host_ready` before you read it."""
    host_text_offsets: Tensor | None = None
    """The same of `text_offsets`; never to be waited for."""
    host_ready: torch.cuda.Event | None = None
    """Behind the copy of offsets that were made on the GPU; None if they are there. The model's
    work is not waited for, and the batch was made ahead, so the wait is mostly over."""

    @property
    def texts_per_image(self) -> int:
        """R."""
        return (len(self.text_offsets) - 1) // self.num_samples

    def dense(self) -> Tensor:
        """The images that were cut into patches, hidden patches black.

        Returns:
            [B, 3, rows*p, columns*p] uint8.

        Raises:
            ValueError: the batch has no `host_grids`, or images of different shapes.
        """
        if self.host_grids is None:
            raise ValueError("dense() needs the grid of each image, [B, 2]: set host_grids")
        if len(self.host_grids.unique(dim=0)) > 1:
            raise ValueError("images of different shapes make no dense batch")
        grid = int(self.host_grids[0, 0]), int(self.host_grids[0, 1])
        num_values, device = self.patches.shape[1], self.patches.device
        lengths = self.image_offsets.diff()
        owners = torch.repeat_interleave(
            torch.arange(self.num_samples, device=device), lengths, output_size=len(self.patches)
        )
        patches = self.patches.new_zeros(self.num_samples, grid[0] * grid[1], num_values)
        patches[owners, self.positions.long()] = self.patches
        return unpatchify(patches, grid).permute(0, 3, 1, 2).contiguous()

    def padded_tokens(self, length: int) -> Tensor:
        """The captions as [B*R, length] int64, zeros at the end, as open_clip's tokenizer does.

        Args:
            length: L, at least the loader's `context_length`.
        """
        return pad_tokens(self.tokens, self.text_offsets, length)

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on `device`; from pinned memory to CUDA the host does not wait."""
        there = self._tensors_on(device)
        images, texts, ready = None, None, None
        if torch.device(device).type == "cuda":
            images = _in_host_memory(self.host_image_offsets, self.image_offsets)
            texts = _in_host_memory(self.host_text_offsets, self.text_offsets)
            ready = self.host_ready
        return replace(
            self, **there, host_image_offsets=images, host_text_offsets=texts, host_ready=ready
        )

    def check(self) -> None:
        """Hold the batch to its contract; for tests and the first batch of a run.

        Raises:
            AssertionError: a dtype, shape or offset is not as documented.
        """
        assert self.patches.dtype == torch.uint8
        assert self.patches.ndim == 2
        assert self.patches.shape[1] % 3 == 0
        assert self.sample_ids.dtype == torch.int64
        for values, offsets, count in (
            (self.positions, self.image_offsets, self.num_samples),
            (self.tokens, self.text_offsets, self.num_samples * self.texts_per_image),
        ):
            assert values.dtype == torch.int32
            assert offsets.dtype == torch.int32
            assert len(offsets) == count + 1
            assert offsets[0] == 0
            assert offsets[-1] == len(values)
            assert bool((offsets.diff() > 0).all())
        assert len(self.positions) == len(self.patches)
        if self.text_embeddings is not None:
            assert self.text_embeddings.dtype == torch.float16
            assert self.text_embeddings.ndim == 2
            assert len(self.text_embeddings) == self.num_samples * self.texts_per_image


def pad_tokens(tokens: Tensor, offsets: Tensor, length: int) -> Tensor:
    """Packed captions as rows of their own.

    Args:
        tokens: [U] token ids of all captions, end to end.
        offsets: [C+1], caption i owns tokens[offsets[i]:offsets[i+1]].
        length: L; no caption may have more tokens.

    Returns:
        [C, L] int64, zeros behind each caption.
    """
    there = torch.arange(length, device=tokens.device) < offsets.diff()[:, None]
    padded = torch.zeros(there.shape, dtype=torch.int64, device=tokens.device)
    return padded.masked_scatter_(there, tokens.long())


def _in_host_memory(copy: Tensor | None, offsets: Tensor) -> Tensor | None:
    return offsets if copy is None and not offsets.is_cuda else copy
