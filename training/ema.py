"""The running average of the weights, kept in a second model beside the one that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tessera.training.parallel import like

M = TypeVar("M", bound=nn.Module)

_RAMP_UP = 0.05
"""The half-life is at most this share of the samples seen, so the start is soon forgotten."""


class WeightAverage(Generic[M]):
    """Exponential average whose half-life counts samples, not steps.

    `average += (1 - decay) * (weight - average)` after every step, with
    `decay = 0.5 ** (batch / half_life)`. Another batch size therefore averages over the same
    stretch of the run. The half-life grows with the samples seen until it is the one asked for
    (Karras et al. 2022, the released training loop of EDM).
    """

    model: M
    """Has the average as its weights; can be run at any time."""

    def __init__(self, trained: M, model: M, half_life: int) -> None:
        """Start from the trained weights.

        Args:
            trained: on its device, and spread over its ranks if it is; each keeps its part.
            model: of the same parameters, spread alike; its weights are overwritten.
            half_life: samples after which a weight counts half as much.
        """
        self.model = model
        self._half_life = half_life
        self._weights = [_own_part(p) for p in trained.parameters()]
        self._average = [_own_part(p) for p in model.parameters()]
        self._take(self._weights)

    def decay(self, samples: int, batch_size: int) -> float:
        """What is kept of the average at one step.

        Args:
            samples: pairs seen, this step's included.
            batch_size: pairs of the step.
        """
        return 0.5 ** (batch_size / min(self._half_life, samples * _RAMP_UP))

    @torch.no_grad()
    def update(self, samples: int, batch_size: int) -> None:
        """Take the present weights in; arguments as for `decay`."""
        take_in = get_ema_multi_avg_fn(self.decay(samples, batch_size))
        take_in(self._average, self._weights, None)
        self._changed()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from a stored average.

        Args:
            weights: whole tensors by the model's parameter names.
        """
        self._take(
            [
                _own_part(like(weights[name].to(parameter.device), parameter))
                for name, parameter in self.model.named_parameters()
            ]
        )

    @torch.no_grad()
    def _take(self, weights: list[Tensor]) -> None:
        for source, target in zip(weights, self._average, strict=True):
            target.copy_(source)
        self._changed()

    def _changed(self) -> None:
        if isinstance(self.model, FSDPModule):
            # What a forward pass gathered outside the blocks stays, and would be taken again.
            self.model.reshard()


def _own_part(tensor: Tensor) -> Tensor:
    """The memory that this rank holds of a tensor, outside autograd."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
