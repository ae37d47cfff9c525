"""SigLIP's sigmoid loss in tiles.

Shapes: W ranks, b image-text pairs on each, B = W * b pairs in all, d length of a feature,
[r, c] a tile of r images and c texts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.model.losses.base import ContrastiveLoss, check_features, compared_captions
from tessera.model.losses.config import LossConfig
from tessera.model.losses.ranks import Ranks
from tessera.model.losses.tiles import Pairs, with_gradients


class SiglipLoss(ContrastiveLoss):
    """Every image with every text a yes-or-no question (Zhai et al. 2023, arXiv 2303.15343).

    -1/B sum_ij log sigmoid(z_ij (scale * c_ij + bias)), z_ij = 1 for a pair and -1 otherwise.
    The paper starts at scale 10 and bias -10.
    """

    def __init__(self, config: LossConfig, ranks: Ranks) -> None:
        super().__init__()
        self._config = config
        self._ranks = ranks

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        *,
        logit_bias: Tensor | None = None,
        sample_ids: Tensor | None = None,
        captions: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """See `ContrastiveLoss`; needs the bias."""
        del sample_ids, step
        if logit_bias is None:
            raise ValueError("siglip needs a logit bias: give the model one (init_logit_bias -10)")
        check_features(image_features, text_features)
        captions = compared_captions(self._config, captions, image_features, text_features)
        with torch.autocast(image_features.device.type, enabled=False):
            return _tiled_siglip_loss(
                image_features.float(),
                text_features.float(),
                logit_scale.float(),
                logit_bias.float(),
                self._config,
                self._ranks,
                captions,
            )


def _tiled_siglip_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor,
    config: LossConfig,
    ranks: Ranks,
    captions: Tensor | None,
) -> Tensor:
    """The mean over this rank's images of their B terms; float32 inputs."""
    same_is_yes = config.same_caption == "positive"
    with torch.no_grad():
        pairs = Pairs(
            images,
            texts,
            ranks,
            config.tile_size,
            captions=captions,
            ignore_same=config.same_caption == "ignore",
        )
        total = torch.zeros((), dtype=torch.float64, device=images.device)
        yes = torch.zeros_like(total)
        for tile in pairs.tiles():
            if tile.of_own_images:
                logits = tile.cosines.mul_(scale).add_(bias)
                pairs.without_others(logits, tile, -torch.inf)
                total += F.softplus(logits).sum()
                if same_is_yes:  # -log sigmoid(x) is -log sigmoid(-x) less x
                    same = pairs.same(tile.images, tile.texts)
                    total -= logits.masked_fill(~same, 0).sum()
                    yes -= same.sum()
                yes += logits.sigmoid_().sum()
        positives = scale * (pairs.images * pairs.texts).sum(1, keepdim=True) + bias
        by_positive = -torch.sigmoid(-positives)
        value = ((total + F.softplus(-positives).sum()) / len(images)).float()
        by_bias = ((yes + by_positive.sum()) / len(images)).float()

    def weigh(cosines: Tensor, of_images: slice, of_texts: slice) -> Tensor:
        weights = (cosines * scale).add_(bias).sigmoid_()
        return weights.sub_(pairs.same(of_images, of_texts).float()) if same_is_yes else weights

    def gradients() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        by_images, by_texts = pairs.gradients(weigh)
        by_images = (by_images + by_positive * pairs.texts) / len(images)
        by_texts = (by_texts + by_positive * pairs.images) / len(texts)
        by_scale = (pairs.images * by_images).sum()
        return scale * by_images, scale * by_texts, by_scale, by_bias

    return with_gradients(value, (images, texts, scale, bias), gradients)
