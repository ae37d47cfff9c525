"""CLIP's symmetric InfoNCE, as a whole and in tiles.

Shapes: W ranks, b image-text pairs on each, B = W * b pairs in all, d length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.losses.base import ContrastiveLoss, check_features
from model.losses.config import LossConfig
from model.losses.ranks import Ranks
from model.losses.tiles import Pairs, SoftmaxWeights, with_gradients


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    label_smoothing: float = 0.0,
    ranks: Ranks | None = None,
) -> Tensor:
    """Symmetric InfoNCE: cross-entropy of picking the right text, and the right image.

    Radford et al. 2021, figure 3. Computed in float32 also under autocast: at a logit scale of
    100 a bfloat16 logit is off by up to a quarter. With several ranks each scores its own rows
    against the columns of all, gathered with their gradient.

    Args:
        image_features: [b, d], unit length.
        text_features: [b, d], unit length.
        logit_scale: [], factor on the similarities (not its logarithm).
        label_smoothing: share of the target spread evenly over all pairs.
        ranks: who shares the global batch; None for this process alone.

    Returns:
        [] float32, the mean of the two directions, each a mean over this rank's rows.

    Raises:
        ValueError: The features are not two matrices of the same shape.
    """
    check_features(image_features, text_features)
    ranks = ranks or Ranks()
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = image_features.float(), text_features.float()
        scaled = logit_scale.float() * images
        if ranks.alone:
            by_image = scaled @ texts.T
            by_text = by_image.T
        else:
            by_image = scaled @ ranks.gather_with_gradient(texts).T
            by_text = logit_scale.float() * texts @ ranks.gather_with_gradient(images).T
        labels = torch.arange(len(images), device=images.device) + ranks.rank * len(images)
        image_loss = F.cross_entropy(by_image, labels, label_smoothing=label_smoothing)
        text_loss = F.cross_entropy(by_text, labels, label_smoothing=label_smoothing)
        return (image_loss + text_loss) / 2


class ClipLoss(ContrastiveLoss):
    """Symmetric InfoNCE over the global batch, in memory linear in its size."""

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
        step: int = 0,
    ) -> Tensor:
        """See `ContrastiveLoss`; a bias has no effect on a softmax, and is ignored."""
        del logit_bias, sample_ids, step
        tile_size, smoothing = self._config.tile_size, self._config.label_smoothing
        if tile_size == 0 or len(image_features) * self._ranks.size <= tile_size:
            return clip_loss(
                image_features,
                text_features,
                logit_scale,
                label_smoothing=smoothing,
                ranks=self._ranks,
            )
        check_features(image_features, text_features)
        with torch.autocast(image_features.device.type, enabled=False):
            inputs = image_features.float(), text_features.float(), logit_scale.float()
            return _tiled_clip_loss(*inputs, smoothing, self._ranks, tile_size)


def _tiled_clip_loss(
    images: Tensor, texts: Tensor, scale: Tensor, smoothing: float, ranks: Ranks, tile_size: int
) -> Tensor:
    """What `clip_loss` returns, over tiles; float32 inputs."""
    with torch.no_grad():
        pairs = Pairs(images, texts, ranks, tile_size)
        negatives = torch.stack([each.log_sum_exp for each in pairs.softmax(scale, scale)], 1)
        positives = (pairs.images * pairs.texts).sum(1, keepdim=True)
        # Cross-entropy of an anchor: log(1 + negatives / positive). Smoothing moves the target
        # from the positive to the mean over all, which is a cosine with the mean feature.
        margins = negatives - scale * positives
        excess = F.softplus(margins)
        mean_image, mean_text = pairs.all_images.mean(0), pairs.all_texts.mean(0)
        means = torch.stack((pairs.images @ mean_text, pairs.texts @ mean_image), 1)
        value = (excess + smoothing * scale * (positives - means)).mean()
        shifts = ranks.gather(scale * positives + excess)
        every_scale = scale.detach().expand(pairs.count)
        weights = SoftmaxWeights(
            image_scale=every_scale,
            image_shift=shifts[:, 0],
            text_scale=every_scale,
            text_shift=shifts[:, 1],
        )
        # Both directions pull at a feature: as an anchor and as another's candidate.
        by_positive = 2 * smoothing - margins.sigmoid().sum(1, keepdim=True)

    def gradients() -> tuple[Tensor, Tensor, Tensor]:
        by_images, by_texts = pairs.gradients(weights)
        by_images += by_positive * pairs.texts - 2 * smoothing * mean_text
        by_texts += by_positive * pairs.images - 2 * smoothing * mean_image
        share = 1 / (2 * len(images))
        # The loss depends on scale * c_ij alone, so by_images, summed over all ranks, has it all.
        by_scale = share * (pairs.images * by_images).sum()
        return share * scale * by_images, share * scale * by_texts, by_scale

    return with_gradients(value, (images, texts, scale), gradients)
