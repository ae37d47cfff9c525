"""CLIP's symmetric InfoNCE, of one or several texts an image, as a whole and in tiles.

LaCLIP (Fan et al. 2023, arXiv 2305.20088) names a multi-text loss and released no code for it, so
both readings are here; see `LossConfig.multi_text` and docs/losses.md. With one text they are one.

Shapes: W ranks, b images on each, B = W * b images in all, R texts of each image, d length of a
feature.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.model.losses.base import ContrastiveLoss, compared_captions
from tessera.model.losses.config import LossConfig, MultiText
from tessera.model.losses.ranks import Ranks
from tessera.model.losses.tiles import Pairs, SoftmaxWeights, Weigh, with_gradients


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    label_smoothing: float = 0.0,
    multi_text: MultiText = "per_version",
    ranks: Ranks | None = None,
) -> Tensor:
    """Symmetric InfoNCE: cross-entropy of picking the right text, and the right image.

    Radford et al. 2021, figure 3. Computed in float32 also under autocast: at a logit scale of
    100 a bfloat16 logit is off by up to a quarter. With several ranks each scores its own rows
    against the columns of all, gathered with their gradient.

    Args:
        image_features: [b, d], unit length.
        text_features: [b*R, d], unit length, the texts of an image behind each other.
        logit_scale: [], factor on the similarities (not its logarithm).
        label_smoothing: share of the target spread evenly over all candidates.
        multi_text: what the texts of an image are to each other, where it has several.
        ranks: who shares the global batch; None for this process alone.

    Returns:
        [] float32, the mean of the two directions, each a mean over this rank's rows.

    Raises:
        ValueError: the features are not matrices with R rows of texts for each image.
    """
    num_texts = _texts_per_image(image_features, text_features)
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
        own = torch.arange(len(images), device=images.device) + ranks.rank * len(images)
        by_image = by_image.unflatten(1, (-1, num_texts))
        if multi_text == "per_version":
            labels = own[:, None].expand(-1, num_texts)
            image_loss = F.cross_entropy(by_image, labels, label_smoothing=label_smoothing)
        else:
            image_loss = _cross_entropy_of_several(by_image, own, label_smoothing)
        labels = own.repeat_interleave(num_texts)
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
        captions: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """See `ContrastiveLoss`; a bias has no effect on a softmax, and is ignored."""
        del logit_bias, sample_ids, step
        num_texts = _texts_per_image(image_features, text_features)
        captions = compared_captions(self._config, captions, image_features, text_features)
        tile_size = self._config.tile_size
        is_one_tile = tile_size == 0 or len(text_features) * self._ranks.size <= tile_size
        if is_one_tile and captions is None:
            return clip_loss(
                image_features,
                text_features,
                logit_scale,
                label_smoothing=self._config.label_smoothing,
                multi_text=self._config.multi_text,
                ranks=self._ranks,
            )
        with torch.autocast(image_features.device.type, enabled=False):
            images, texts = image_features.float(), text_features.float()
            by_version = texts.unflatten(0, (-1, num_texts)).transpose(0, 1)
            return _tiled_clip_loss(
                images, by_version, logit_scale.float(), self._config, self._ranks, captions
            )


def _texts_per_image(image_features: Tensor, text_features: Tensor) -> int:
    """R.

    Raises:
        ValueError: with both shapes.
    """
    images, texts = image_features.shape, text_features.shape
    if len(images) != 2 or len(texts) != 2 or images[1] != texts[1] or texts[0] % images[0]:
        raise ValueError(
            "image and text features must be [B, d] and [B*R, d], got "
            f"{list(images)} and {list(texts)}"
        )
    return texts[0] // images[0]


def _cross_entropy_of_several(logits: Tensor, own: Tensor, smoothing: float) -> Tensor:
    """Mean over images of the cross-entropy with a target that is even over their own texts.

    Args:
        logits: [b, B, R].
        own: [b], place of each image among all B.
        smoothing: share of the target spread evenly over all texts.
    """
    target = logits[torch.arange(len(own), device=own.device), own].mean(1)
    target = (1 - smoothing) * target + smoothing * logits.mean((1, 2))
    return (logits.logsumexp((1, 2)) - target).mean()


def _tiled_clip_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    config: LossConfig,
    ranks: Ranks,
    captions: Tensor | None = None,
) -> Tensor:
    """What `clip_loss` returns, over tiles; float32 inputs.

    The matrix of B images and B*R texts is R matrices of pairs, one for each version.

    Args:
        images: [b, d].
        texts: [R, b, d].
        scale: [].
        config: options of the loss.
        ranks: who shares the global batch.
        captions: [b] keys of the captions, where the loss goes by them; R is 1 then.
    """
    smoothing, num_texts = config.label_smoothing, len(texts)
    with torch.no_grad():
        every_image = ranks.gather(images)
        versions = [
            Pairs(
                images,
                each,
                ranks,
                config.tile_size,
                all_images=every_image,
                captions=captions,
                ignore_same=config.same_caption == "ignore",
            )
            for each in texts
        ]
        # [R, b, 2], column 0 of the images as anchors, column 1 of the texts.
        negatives = torch.stack([_negatives(pairs, scale) for pairs in versions])
        positives = (images * texts).sum(2, keepdim=True)
        if config.multi_text == "all_texts":
            negatives[..., 0] = _all_but_one(negatives[..., 0], scale * positives[..., 0])
        # Cross-entropy of an anchor: log(1 + negatives / positive). Smoothing moves the target
        # from the positive to the mean over all, which is a cosine with the mean feature.
        margins = negatives - scale * positives
        excess = F.softplus(margins)
        mean_image = every_image.mean(0)
        mean_text = torch.stack([pairs.all_texts.mean(0) for pairs in versions]).mean(0)
        means = torch.stack(((images @ mean_text).expand(num_texts, -1), texts @ mean_image), 2)
        value = (excess + smoothing * scale * (positives - means)).mean()
        # Of an anchor's softmax over all of its candidates, the positive included.
        totals = scale * positives + excess
        image_share = 1 if config.multi_text == "all_texts" else num_texts
        weights: list[Weigh] = [
            _softmax_weights(ranks.gather(each), scale, image_share, num_texts) for each in totals
        ]
        # Both directions pull at a feature: as an anchor and as another's candidate. An image that
        # chooses among all its texts is content where each has its share of the target.
        constant = 1 / image_share - 1 / num_texts + 2 * smoothing / num_texts
        of_image, of_text = margins.sigmoid().split(1, dim=2)
        by_positive = constant - of_image / image_share - of_text / num_texts
        if config.same_caption == "positive":
            targets = _SharedTargets(versions[0], ranks)
            value += scale * targets.shortfall(positives[0]).mean()
            by_positive += 2 * (1 - targets.own_share)[:, None]
            weights = [targets.without_targets(weights[0])]

    def gradients() -> tuple[Tensor, Tensor, Tensor]:
        by_images, by_texts = torch.zeros_like(images), torch.empty_like(texts)
        for version, (pairs, each) in enumerate(zip(versions, weights, strict=True)):
            of_images, by_texts[version] = pairs.gradients(each)
            by_images += of_images.addcmul_(by_positive[version], texts[version])
        by_images -= 2 * smoothing * mean_text
        by_texts.addcmul_(by_positive, images).sub_(2 * smoothing / num_texts * mean_image)
        share = 1 / (2 * len(images))
        # The loss depends on scale * c_ij alone, so by_images, summed over all ranks, has it all.
        by_scale = share * (images * by_images).sum()
        return by_images.mul_(share * scale), by_texts.mul_(share * scale), by_scale

    return with_gradients(value, (images, texts, scale), gradients)


class _SharedTargets:
    """The target of CLIP's loss shared evenly by all pairs with one caption, its own included."""

    def __init__(self, pairs: Pairs, ranks: Ranks) -> None:
        self._pairs = pairs
        self._sums, counts = pairs.sums_of_same()
        self.own_share = 1 / (1 + counts)
        """[b], of the target of an image or a text, the part of each of its positives."""
        self._shares = ranks.gather(self.own_share)

    def shortfall(self, positives: Tensor) -> Tensor:
        """[b, 2], how far each anchor's own cosine [b, 1] is above that of its targets."""
        return positives - (positives + self._sums) * self.own_share[:, None]

    def without_targets(self, weigh: Weigh) -> Weigh:
        """The softmax weights of both directions less both targets, which are alike."""

        def weigh_less(cosines: Tensor, images: slice, texts: slice) -> Tensor:
            targets = self._pairs.same(images, texts) * self._shares[images, None]
            return weigh(cosines, images, texts).sub_(2 * targets)

        return weigh_less


def _negatives(pairs: Pairs, scale: Tensor) -> Tensor:
    """[b, 2], log-sum-exp over the negatives of each image and of each text."""
    return torch.stack([anchors.log_sum_exp for anchors in pairs.softmax(scale, scale)], 1)


def _all_but_one(negatives: Tensor, positives: Tensor) -> Tensor:
    """Log-sum-exp over all texts but one of the image's own.

    Args:
        negatives: [R, b], over the negatives of each version.
        positives: [R, b], scaled cosines with the image's own texts.

    Returns:
        [R, b], row r over all texts but the image's own of version r.
    """
    others = positives.expand(len(positives), -1, -1).clone()
    others.diagonal(dim1=0, dim2=1).fill_(-torch.inf)
    return torch.logaddexp(negatives.logsumexp(0), others.logsumexp(1))


def _softmax_weights(
    totals: Tensor, scale: Tensor, image_share: int, text_share: int
) -> SoftmaxWeights:
    """Softmax of both directions within one version, for derivatives by its cosines.

    Args:
        totals: [B, 2], log-sum-exp over all candidates of each image and each text.
        scale: [].
        image_share: the image's softmax counts one so-manieth.
        text_share: the text's softmax counts one so-manieth.
    """
    every_scale = scale.detach().expand(len(totals))
    return SoftmaxWeights(
        image_scale=every_scale,
        image_shift=totals[:, 0] + math.log(image_share),
        text_scale=every_scale,
        text_shift=totals[:, 1] + math.log(text_share),
    )
