"""Image tower: a vision transformer over the visible patches of a batch, packed.

Shapes: B images, T visible patches of all of them, N patches of a full image, p the patch
side, W channels of the residual stream, d length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.model.attention import AttentionPool, Block, LayerNorm, Linear, run_blocks
from tessera.model.config import VisionConfig
from tessera.model.execution import Execution
from tessera.model.packing import PackedLayout, build_layout, sequence_index
from tessera.model.positions import sin_cos_table


class ImageTower(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, as CLIP and SigLIP use it)."""

    class_embedding: nn.Parameter | None
    """[W], or None without a class token."""
    pool: AttentionPool | None
    """Where a learned query pools the patches."""
    proj: nn.Parameter | None
    """[W, d], or None where the pooled stream itself is the feature."""

    pixel_center: Tensor
    """[3*p*p] mean of each pixel value, rounded to an integer."""
    pixel_scale: Tensor
    """[3*p*p] factor from a step of 1 in a pixel value to its normalised value."""
    pixel_rest: Tensor
    """[3*p*p] normalised value of `pixel_center`: what rounding left over."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.execution = Execution()
        self.patch_embed = Linear(config.patch_dim, width, bias=config.patch_bias)
        scale, num_class = width**-0.5, int(config.class_token)
        self.class_embedding = nn.Parameter(scale * torch.randn(width)) if num_class else None
        if config.positions == "learnable":
            table = nn.Parameter(scale * torch.randn(config.num_positions, width))
        else:
            fixed = sin_cos_table(config.grid_size, width)[1 - num_class :].clone()
            table = nn.Parameter(fixed, requires_grad=False)
        self.positional_embedding = table
        self.ln_pre = LayerNorm(width, eps=config.ln_eps) if config.ln_pre else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_post = LayerNorm(width, eps=config.ln_eps)
        self.pool = AttentionPool(config) if config.pool == "map" else None
        has_proj = config.projection
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim)) if has_proj else None
        # In float64: `pixel_rest` is a small difference of large numbers.
        std = torch.tensor(config.pixel_std, dtype=torch.float64).repeat(config.patch_size**2)
        mean = torch.tensor(config.pixel_mean, dtype=torch.float64).repeat(config.patch_size**2)
        center, scale = (255 * mean).round(), 1 / (255 * std)
        for name, value in {
            "pixel_center": center,
            "pixel_scale": scale,
            "pixel_rest": (center - 255 * mean) * scale,
        }.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def forward(self, patches: Tensor, positions: Tensor, offsets: Tensor) -> Tensor:
        """Encodes images; see `Clip.encode_image`.

        Args:
            patches: [T, 3*p*p] uint8 or float.
            positions: [T] int32.
            offsets: [B+1] int32.

        Returns:
            [B, d].
        """
        num_patches, batch_size = patches.shape[0], offsets.shape[0] - 1
        num_class = int(self.config.class_token)
        with_class = offsets + num_class * torch.arange(
            batch_size + 1, dtype=offsets.dtype, device=offsets.device
        )
        compute, residual = self.execution.types(self.patch_embed.weight)
        layout = build_layout(
            with_class,
            num_patches + num_class * batch_size,
            pooled_rows=with_class[:-1].long(),
            max_length=(self.execution.max_patches or self.config.num_patches) + num_class,
            causal=False,
            dtype=compute,
            static=self.execution.static_shapes,
        )
        patch_rows = None
        if self.class_embedding is not None:
            # One class token stands before each image, so a patch moves down by its image's
            # number and one.
            image = sequence_index(offsets, num_patches)
            patch_rows = torch.arange(num_patches, device=offsets.device) + image + 1
        x = self._embed(patches, positions, patch_rows, layout, residual)
        recompute = self.execution.checkpoint_blocks
        if self.config.pool == "tok":
            x = self.ln_post(run_blocks(self.blocks, x, layout, recompute=recompute))
        else:
            x = run_blocks(self.blocks, x, layout, pooled=False, recompute=recompute)
            if self.pool is not None:
                x = self.pool(self.ln_post(x.to(layout.dtype)), layout)
            else:
                patches_only = x if patch_rows is None else x.index_select(0, patch_rows)
                x = self._mean_of_patches(patches_only, offsets)
        x = x.to(layout.dtype)
        return x if self.proj is None else x @ self.proj.to(layout.dtype)

    def projection(self) -> list[nn.Parameter]:
        """What brings the tower's feature into the joint space; empty without a projection."""
        return [] if self.proj is None else [self.proj]

    def after_blocks(self) -> list[nn.Parameter]:
        """All that follows the blocks, `projection` included."""
        pool = [] if self.pool is None else list(self.pool.parameters())
        return [*self.ln_post.parameters(), *pool, *self.projection()]

    def patch_positions(self) -> Tensor:
        """[N, W] rows of the position table that belong to patches."""
        return self.positional_embedding[int(self.config.class_token) :]

    def _embed(
        self,
        patches: Tensor,
        positions: Tensor,
        patch_rows: Tensor | None,
        layout: PackedLayout,
        residual: torch.dtype,
    ) -> Tensor:
        """Token stream: of each image the class token, if there is one, then its patches."""
        x = self._projected(patches, layout.dtype)
        if self.class_embedding is None:
            x = x + F.embedding(positions, self.positional_embedding)
            return self.ln_pre(x.to(residual))
        assert patch_rows is not None
        x = x + F.embedding(positions + 1, self.positional_embedding)
        class_token = self.class_embedding + self.positional_embedding[0]
        x = torch.cat([class_token.expand(layout.batch_size, -1), x])
        rows = torch.cat([layout.pooled_rows, patch_rows])
        # In place: out of place, the memory without a value would be copied first.
        x = torch.empty_like(x).index_copy_(0, rows, x)
        return self.ln_pre(x.to(residual))

    def _mean_of_patches(self, x: Tensor, offsets: Tensor) -> Tensor:
        """[T, W] to [B, W], with the last layer norm before or after the mean."""
        if not self.config.pool_before_ln:
            x = self.ln_post(x)
        # In float32: a sum of hundreds of bfloat16 rows would lose their last bits. Unchecked,
        # because a check of the offsets would wait for the device.
        x = torch.segment_reduce(x.float(), "mean", offsets=offsets, axis=0, unsafe=True)
        return self.ln_post(x) if self.config.pool_before_ln else x

    def _projected(self, patches: Tensor, dtype: torch.dtype) -> Tensor:
        """[T, 3*p*p] patches to [T, W]; pixel values are normalised by the projection's weight.

        What is multiplied are pixel values minus an integer, which bfloat16 holds exactly. Without
        that integer the sums would be large beside their differences, which the type would round.
        """
        if patches.dtype != torch.uint8:
            return self.patch_embed(patches.to(dtype))
        weight, shift = self.patch_embed.weight, self.patch_embed.weight @ self.pixel_rest
        if self.patch_embed.bias is not None:
            shift = shift + self.patch_embed.bias
        return F.linear(
            torch.sub(patches, self.pixel_center.to(dtype)),
            (weight * self.pixel_scale).to(dtype),
            shift.to(dtype),
        )
