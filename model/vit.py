"""Image tower: a vision transformer over the visible patches of a batch, packed.

Shapes: B images, T visible patches of all of them, N patches of a full image, p the patch
side, W channels of the residual stream, d length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Block, run_blocks
from model.config import VisionConfig
from model.packing import PackedLayout, build_layout, compute_dtype, sequence_index

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training pixels, red, green, blue, for values in 0 .. 1."""
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the same."""


class ImageTower(nn.Module):
    """Vision transformer with a class token (Dosovitskiy et al. 2021, as CLIP uses it)."""

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, config: VisionConfig, embed_dim: int, *, quick_gelu: bool) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.patch_embed = nn.Linear(config.patch_dim, width, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(config.num_patches + 1, width))
        self.ln_pre = nn.LayerNorm(width) if config.ln_pre else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, quick_gelu=quick_gelu)
            for _ in range(config.layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))
        std = torch.tensor(PIXEL_STD).repeat(config.patch_size**2)
        mean = torch.tensor(PIXEL_MEAN).repeat(config.patch_size**2)
        self.register_buffer("pixel_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("pixel_shift", -mean / std, persistent=False)

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
        with_class = offsets + torch.arange(
            batch_size + 1, dtype=offsets.dtype, device=offsets.device
        )
        layout = build_layout(
            with_class,
            num_patches + batch_size,
            pooled_rows=with_class[:-1].long(),
            max_length=self.config.num_patches + 1,
            causal=False,
            dtype=compute_dtype(self.patch_embed.weight),
        )
        x = self._embed(patches, positions, offsets, layout)
        x = run_blocks(self.blocks, x, layout)
        return self.ln_post(x).to(layout.dtype) @ self.proj.to(layout.dtype)

    def _embed(
        self, patches: Tensor, positions: Tensor, offsets: Tensor, layout: PackedLayout
    ) -> Tensor:
        """Token stream [T+B, W]: of each image the class token, then its patches."""
        x = self.patch_embed(self._normalised(patches))
        x = x + F.embedding(positions + 1, self.positional_embedding)
        class_token = self.class_embedding + self.positional_embedding[0]
        x = torch.cat([class_token.expand(layout.batch_size, -1), x])
        # One class token stands before each image, so a patch moves down by its image's number
        # and one.
        image = sequence_index(offsets, patches.shape[0])
        moved = torch.arange(patches.shape[0], device=offsets.device) + image + 1
        rows = torch.cat([layout.pooled_rows, moved])
        x = torch.empty_like(x).index_copy(0, rows, x)
        return self.ln_pre(x).to(layout.dtype)

    def _normalised(self, patches: Tensor) -> Tensor:
        if patches.dtype == torch.uint8:
            patches = torch.addcmul(self.pixel_shift, patches.float(), self.pixel_scale)
        return patches.to(self.patch_embed.weight.dtype)
