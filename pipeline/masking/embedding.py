"""Similarity of patch embeddings, mixed into that of pixels more and more over a run.

The pipeline imports no model: the training loop hands it the current weights of the patch
projection through a `PatchEmbedding`.

Legend: B images, N patches of an image, D values of a patch, A anchors of an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tessera.pipeline.masking.similarity import anchor_similarity, rows_of
from tessera.pipeline.patches import normalise


class _State(NamedTuple):
    weight: Tensor
    positions: Tensor | None
    alpha: float


class PatchEmbedding:
    """The weights of the patch projection, and how much they count at the step they are from.

    Similarity is (1 - alpha) * RGB + alpha * cosine of the embeddings, alpha linear over the run.
    The released code starts with RGB and ends with embeddings, which are random at the start; the
    paper's text, second-hand, reads the other way round: swap `first` and `last` for that.

    `update` is called by the training loop, and readers on other threads see either the old or the
    new state, whole. How often and at which steps is the caller's choice. Batches made ahead use
    the weights of an earlier step: a run that is resumed gives the same masks only if the caller
    updates at fixed steps and lets no batch be made ahead of an update.
    """

    def __init__(self, *, num_steps: int, first: float = 0.0, last: float = 1.0) -> None:
        """State the schedule; until the first update RGB alone counts.

        Args:
            num_steps: steps of the run, over which alpha goes from `first` to `last`.
            first: alpha at step 0.
            last: alpha at the end.

        Raises:
            ValueError: an alpha outside 0 .. 1, or no steps.
        """
        if not (0 <= first <= 1 and 0 <= last <= 1 and num_steps > 0):
            raise ValueError(
                f"alpha goes from 0..1 to 0..1 over at least one step, not from {first} to {last} "
                f"over {num_steps}"
            )
        self._num_steps, self._first, self._last = num_steps, first, last
        self._state: _State | None = None

    def update(self, weight: Tensor, step: int, positions: Tensor | None = None) -> None:
        """Take over the weights of `step`; they are copied.

        Args:
            weight: [width, D] of the projection of normalised patches, D in (y, x, channel) order.
            step: steps trained so far.
            positions: [N, width] positional embedding, added as the released code does.
        """
        share = min(1.0, step / self._num_steps)
        self._state = _State(
            weight=weight.detach().float().clone(),
            positions=None if positions is None else positions.detach().float().clone(),
            alpha=self._first + share * (self._last - self._first),
        )

    @property
    def alpha(self) -> float:
        """Weight of the embedding's similarity now, 0 .. 1."""
        return self._state.alpha if self._state else 0.0

    def similarity(self, patches: Tensor, anchors: Tensor) -> Tensor:
        """Mixed similarity of every patch to every anchor.

        All patches are projected, which costs as much as the model's own first layer: cheap on a
        GPU, several milliseconds an image on a CPU core.

        Args:
            patches: [B, N, D] uint8, or float and already normalised.
            anchors: [B, A] long.

        Returns:
            [B, N, A] float32 in -1 .. 1; an anchor has 1 to itself.
        """
        state = self._state
        alike = anchor_similarity(patches, anchors)
        if state is None or not state.alpha:
            return alike
        values = normalise(patches) if patches.dtype == torch.uint8 else patches.float()
        embedded = values @ state.weight.to(values.device).T
        if state.positions is not None:
            embedded += state.positions.to(values.device)
        embedded = torch.nn.functional.normalize(embedded, dim=2)
        cosine = torch.bmm(embedded, rows_of(embedded, anchors).mT)
        mixed = alike.lerp(cosine, state.alpha)
        mixed.mT.scatter_(2, anchors[:, :, None], 1.0)
        return mixed
