"""The running average of the weights, kept beside the ones that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.parallel import like

_RAMP_UP = 0.05
"""The half-life is at most this share of the samples seen, so the start is soon forgotten."""


class WeightAverage:
    """Exponential average whose half-life counts samples, not steps.

    `average += (1 - decay) * (weight - average)` behind every step, with
    `decay = 0.5 ** (batch / half_life)`. Another batch size therefore averages over the same
    stretch of the run. The half-life grows with the samples seen until it is the one asked for
    (Karras et al. 2022, the released training loop of EDM).
    """

    def __init__(self, model: nn.Module, half_life: int) -> None:
        """Start from the model's weights.

        Args:
            model: on its device, and spread over its ranks if it is; each keeps its part.
            half_life: samples after which a weight counts half as much.
        """
        self._model = model
        self._half_life = half_life
        self._weights = [_own_part(p) for p in model.parameters()]
        self._names = [name for name, _ in model.named_parameters()]
        self._average = [weight.clone() for weight in self._weights]

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

    @torch.no_grad()
    def load(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Go on from a stored average.

        Args:
            model: the one this was made of.
            weights: whole tensors by the model's parameter names.
        """
        parameters = dict(model.named_parameters())
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(_own_part(like(weights[name].to(average.device), parameters[name])))

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Inside the block, the model's weights are the average."""
        trained = [weight.clone() for weight in self._weights]
        self.copy_into_model()
        try:
            yield
        finally:
            self._give_model(trained)

    @torch.no_grad()
    def copy_into_model(self) -> None:
        """Give the model the average for good."""
        self._give_model(self._average)

    def _give_model(self, weights: list[Tensor]) -> None:
        for source, target in zip(weights, self._weights, strict=True):
            target.copy_(source)
        if isinstance(self._model, FSDPModule):
            # What a forward pass gathered outside the blocks stays, and would be taken again.
            self._model.reshard()


def _own_part(tensor: Tensor) -> Tensor:
    """The memory that this rank holds of a tensor, outside autograd."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
