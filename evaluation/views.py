"""Which patches of a picture the model sees when it is evaluated.

Legend: B pictures, N patches of a picture, D values of one, V views of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.counter_random import Purpose, uniforms
from tessera.pipeline.masking.config import MaskConfig, kinds_with

if TYPE_CHECKING:  # a program's --help must not wait for torch
    from torch import Tensor

    from tessera.pipeline.masking import MaskStrategy

Views = Literal["full", "masked", "complementary"]

_WHOLE_WITHIN = 0.05
"""Of a number of views: 0.667 is taken for two thirds."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What is shown of each picture."""

    views: Views = "full"
    """full: all patches. masked: what `mask` leaves. complementary: the patches are dealt out at
    random into 1 / (1 - mask.mask_ratio) disjoint views, and the mean of their unit features is the
    picture's (FLIP, arXiv 2212.00794, table 1d)."""
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(kind="none"))
    """masked: any kind that compares pixels only. complementary: random."""
    seed: int = 0
    """Of the masks. A picture's masks depend on it and on its place, not on batches or ranks."""

    def __post_init__(self) -> None:
        """Raise ValueError where mask and views do not fit each other."""
        kind = self.mask.kind
        if (self.views == "full") != (kind == "none"):
            raise ValueError(
                f"views {self.views} and mask.kind {kind} do not go together: full takes none, "
                "masked and complementary take a mask, such as --mask.kind random"
            )
        if self.views == "complementary" and (kind != "random" or self.mask.mask_ratio < 0.5):
            raise ValueError(
                "views complementary needs mask.kind random and a mask.mask_ratio of 0.5 or more, "
                f"got {kind} and {self.mask.mask_ratio}"
            )
        count = 1 / (1 - self.mask.mask_ratio)
        if self.views == "complementary" and abs(count - round(count)) > _WHOLE_WITHIN:
            raise ValueError(
                "views complementary deals the patches into 1 / (1 - mask.mask_ratio) views, which "
                f"is {count:.2f} for {self.mask.mask_ratio}: take 0.5, 0.667, 0.75 or 0.8"
            )
        if self.mask.uses_embedding:
            raise ValueError("masks of evaluation compare pixels: leave mask.embedding_* at 0")
        if self._cluster_mode == "threshold" and self.mask.threshold is None:
            raise ValueError("mask.mode threshold needs mask.threshold: evaluation looks for none")

    @property
    def num_views(self) -> int:
        """V."""
        return round(1 / (1 - self.mask.mask_ratio)) if self.views == "complementary" else 1

    def visible(self, patches: Tensor, ids: NDArray[np.int64]) -> list[Tensor]:
        """What each view shows.

        Args:
            patches: [B, N, D] float, normalised.
            ids: [B] what the draws of each picture are keyed by.

        Returns:
            V tensors [B, N] bool.
        """
        import torch

        if self.views == "full":
            return [torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)]
        draws = uniforms(self.seed, 0, ids, Purpose.MASK, patches.shape[1])
        noise = torch.from_numpy((np.floor(draws * 2**24) * 2.0**-24).astype(np.float32))
        noise = noise.to(patches.device)
        if self.views == "masked":
            return [self._strategy().visible(patches, noise)]
        # The place of each patch in the order of its noise, dealt out like cards.
        dealt = noise.argsort(dim=1, stable=True).argsort(dim=1) % self.num_views
        return [dealt == view for view in range(self.num_views)]

    def _strategy(self) -> MaskStrategy:
        # Each picture has a budget of its own: else its mask would depend on its neighbours.
        own_budget = self._cluster_mode == "budget"
        return (replace(self.mask, group_size=1) if own_budget else self.mask).build()

    @property
    def _cluster_mode(self) -> str:
        """How a mask of clusters decides how much is dropped; empty for other masks."""
        return self.mask.resolved_mode if self.mask.kind in kinds_with("mode") else ""
