"""A model between two: WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903).

A model that was fine-tuned loses some of what it could before. Weights on the line between both,
`(1 - alpha) * start + alpha * tuned`, often keep most of either: of one architecture, and the one
trained from the other, both lie in one basin of the loss.
"""

from __future__ import annotations

import torch

from tessera.model.clip import Clip


def average_weights(clip: Clip, other: Clip, alpha: float) -> None:
    """Move the weights of `clip` the share `alpha` of the way to those of `other`, in place.

    Args:
        clip: the start; keeps its weights at alpha 0.
        other: of the same architecture; gives all its weights at alpha 1.
        alpha: 0 to 1.

    Raises:
        ValueError: another architecture, or an alpha outside 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a share, 0 (the first model) to 1 (the second), got {alpha}")
    ours, theirs = clip.state_dict(), other.state_dict()
    others = {
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    }
    if others:
        raise ValueError(
            f"{clip.config.name!r} and {other.config.name!r} are not of one architecture: "
            f"{min(others)!r} and {len(others) - 1} other tensors are missing in one of them or "
            "have another shape"
        )
    with torch.no_grad():
        for name, weight in ours.items():
            if weight.is_floating_point():
                weight.lerp_(theirs[name].to(weight), alpha)
