"""Losses that hold features to a teacher's: each feature, and the distances between them.

ProCLIP (2025) names both terms, instance L2 and pairwise-distance L2, for its two uses: the adapter
learns what CLIP's text tower gives, and the image tower stays near its own running average. The
weighting of the terms and the means are ours: both terms count once.

Shapes: W ranks, b rows on each of them, d length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.model.losses.base import ContrastiveLoss, check_features
from tessera.model.losses.ranks import Ranks

_SMALLEST = 1e-6
"""Squared distances below this are rounding: float32 features of unit length carry about 1e-7."""


def distillation_loss(teacher: Tensor, student: Tensor, ranks: Ranks | None = None) -> Tensor:
    """Mean squared length of the differences, and mean squared difference of distances.

    Computed in float32 also under autocast. With several ranks each measures its own rows, and
    their distances to all other rows.

    Args:
        teacher: [b, d], unit length; gets no gradient.
        student: [b, d], unit length.
        ranks: who shares the global batch; None for this process alone.

    Returns:
        [] float32, this rank's share; the mean over ranks is the loss of the global batch.

    Raises:
        ValueError: the features are not two matrices of one shape.
    """
    check_features(teacher, student)
    ranks = ranks or Ranks()
    with torch.autocast(student.device.type, enabled=False):
        teacher, student = teacher.detach().float(), student.float()
        instances = (student - teacher).square().sum(1).mean()
        if len(student) * ranks.size == 1:
            return instances
        theirs = _distances(teacher, ranks.gather(teacher), ranks.rank)
        ours = _distances(student, ranks.gather_with_gradient(student), ranks.rank)
        return instances + (ours - theirs).square().sum() / (ours.numel() - len(ours))


class DistillationLoss(ContrastiveLoss):
    """`distillation_loss` as a run's loss: the teacher's features stand in the images' place."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
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
        """See `ContrastiveLoss`; scale and bias have no effect."""
        del logit_scale, logit_bias, sample_ids, captions, step
        return distillation_loss(image_features, text_features, self._ranks)


def _distances(rows: Tensor, others: Tensor, rank: int) -> Tensor:
    """[b, W*b] Euclidean distances of unit vectors; 0 for a row and itself."""
    squared = 2 - 2 * rows @ others.T
    # The root's slope is infinite at 0, where nothing is to be learned from equal rows.
    distances = squared.clamp_min(_SMALLEST).sqrt()
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    itself = F.pad(itself, (rank * len(rows), len(others) - (rank + 1) * len(rows)))
    return distances.masked_fill(itself, 0.0)
