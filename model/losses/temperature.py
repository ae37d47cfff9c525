"""How the robust members of the FastCLIP family learn their temperatures.

Facts about the released code: Optimization-AI/fast_clip at efd89d5, the code of arXiv 2407.01445.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tessera.model.losses.config import LossConfig

COLD = 0.03
"""Temperature from which down v3 learns it at a third of the rate."""
GRADIENT_LIMIT = 5.0
"""Largest absolute gradient by an individual temperature."""


class GlobalTemperature(nn.Module):
    """One temperature, learned by Adam in log(1/temperature): FastCLIP v3."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        method = config.method()
        self._config = config
        self._learning_rate = method.learning_rate
        self.log_scale: Tensor
        self.first_moment: Tensor
        self.second_moment: Tensor
        self.updates: Tensor
        self.register_buffer("log_scale", torch.tensor(-math.log(method.temperature)))
        for name in ("first_moment", "second_moment", "updates"):
            self.register_buffer(name, torch.zeros(()))

    def value(self) -> Tensor:
        """[] float32, the temperature."""
        return torch.exp(-self.log_scale)

    def update(self, gradient: Tensor) -> None:
        """One step.

        Args:
            gradient: [], of the global loss by the temperature.
        """
        config, temperature = self._config, self.value()
        self.updates += 1
        step, first, second = adam_step(
            -temperature * gradient,
            self.first_moment,
            self.second_moment,
            betas=config.temperature_betas,
            updates=self.updates,
            eps=config.temperature_adam_eps,
        )
        self.first_moment.copy_(first)
        self.second_moment.copy_(second)
        rate = torch.where(temperature <= COLD, self._learning_rate / 3, self._learning_rate)
        self.log_scale -= rate * step
        self.log_scale.clamp_(-math.log(config.temperature_max), -math.log(config.temperature_min))


def updated_individual(
    config: LossConfig, known: dict[str, Tensor], slope: Tensor, pass_number: int
) -> dict[str, Tensor]:
    """One Adam step of the temperatures of some anchors: FastCLIP v2 and iSogCLR.

    As in the released code the moments decay from the second pass on and are corrected by the
    number of passes, in which a sample comes once.

    Args:
        config: rates and limits.
        known: `temperature`, `first_moment` and `second_moment`, of one shape.
        slope: of that shape, derivative of each anchor's own term by its temperature.
        pass_number: passes over the data before this one.

    Returns:
        The same three after the step.
    """
    step, first, second = adam_step(
        slope.clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT),
        known["first_moment"],
        known["second_moment"],
        betas=config.temperature_betas if pass_number else (0.0, 0.0),
        updates=pass_number + 1,
        eps=config.temperature_adam_eps,
    )
    moved = known["temperature"] - config.method().learning_rate * step
    temperature = moved.clamp(config.temperature_min, config.temperature_max)
    return {"temperature": temperature, "first_moment": first, "second_moment": second}


def adam_step(
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    *,
    betas: tuple[float, float],
    updates: Tensor | int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam (arXiv 1412.6980, algorithm 1), element by element.

    Args:
        gradient: of any shape.
        first_moment: of that shape.
        second_moment: of that shape.
        betas: decay of the two moments, each of 1.
        updates: steps done, this one included.
        eps: added to the denominator.

    Returns:
        What to subtract at a learning rate of 1, and both moments.
    """
    first = betas[0] * first_moment + (1 - betas[0]) * gradient
    second = betas[1] * second_moment + (1 - betas[1]) * gradient.square()
    spread = (second / (1 - betas[1] ** updates)).sqrt()
    return first / (1 - betas[0] ** updates) / (spread + eps), first, second
