"""The losses and the whole FastCLIP family in NumPy float64, dense, straight from the formulas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from tessera.model import LossConfig

Array = NDArray[np.float64]


@dataclasses.dataclass
class Result:
    """A loss and its derivatives."""

    value: float
    by_images: Array
    by_texts: Array
    by_scale: float
    by_bias: float = 0.0


def clip(images: Array, texts: Array, scale: float, smoothing: float = 0.0) -> Result:
    return _matched(images, texts, np.eye(len(images)), scale, smoothing)


def clip_per_version(images: Array, texts: Array, scale: float, smoothing: float) -> Result:
    """Mean of CLIP's loss over the versions; texts [B*R, d], those of an image together."""
    num_texts = len(texts) // len(images)
    parts = [clip(images, texts[n::num_texts], scale, smoothing) for n in range(num_texts)]
    by_texts = np.stack([part.by_texts for part in parts], 1).reshape(texts.shape)
    return Result(
        value=float(np.mean([part.value for part in parts])),
        by_images=np.mean([part.by_images for part in parts], 0),
        by_texts=by_texts / num_texts,
        by_scale=float(np.mean([part.by_scale for part in parts])),
    )


def clip_all_texts(images: Array, texts: Array, scale: float, smoothing: float) -> Result:
    """An image's own texts share its target among all texts; a text has one image."""
    num_texts = len(texts) // len(images)
    matches = np.repeat(np.eye(len(images)), num_texts, axis=1)
    return _matched(images, texts, matches, scale, smoothing)


def _matched(images: Array, texts: Array, matches: Array, scale: float, smoothing: float) -> Result:
    """Cross-entropy of both directions; `matches` is 1 for an image and a text of its own."""
    cosines = images @ texts.T
    value, slope = 0.0, np.zeros_like(cosines)
    for logits, own, turn in (
        (scale * cosines, matches, False),
        (scale * cosines.T, matches.T, True),
    ):
        rows, columns = logits.shape
        target = (1 - smoothing) * own / own.sum(1, keepdims=True) + smoothing / columns
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        value -= (target * np.log(weights)).sum() / (2 * rows)
        part = (weights - target) / (2 * rows)
        slope += part.T if turn else part
    return _through_cosines(value, slope, images, texts, scale)


def siglip(images: Array, texts: Array, scale: float, bias: float) -> Result:
    cosines = images @ texts.T
    signs = 2 * np.eye(len(images)) - 1
    margins = signs * (scale * cosines + bias)
    value = np.log1p(np.exp(-margins)).sum() / len(images)
    slope = -signs / (1 + np.exp(margins)) / len(images)
    result = _through_cosines(value, slope, images, texts, scale)
    result.by_bias = float(slope.sum())
    return result


def _through_cosines(
    value: float, slope: Array, images: Array, texts: Array, scale: float
) -> Result:
    """`slope`: derivative by the scaled cosines."""
    return Result(
        value=float(value),
        by_images=scale * slope @ texts,
        by_texts=scale * slope.T @ images,
        by_scale=float((slope * (images @ texts.T)).sum()),
    )


class FastClip:
    """The algorithm with u itself, not its logarithm; [n, 2] for both sides of every sample."""

    def __init__(self, config: LossConfig, num_samples: int, steps_per_pass: int) -> None:
        method = config.method()
        self.config, self.method, self.steps_per_pass = config, method, steps_per_pass
        self.u = np.full((num_samples, 2), np.nan)
        self.tau = np.full((num_samples, 2), method.temperature)
        self.moments = np.zeros((2, num_samples, 2))
        self.global_tau = method.temperature
        self.global_moments = np.zeros(2)
        self.updates = 0

    def gamma(self, pass_number: int) -> float:
        if pass_number == 0:
            return 1.0
        least, length = self.method.gamma, self.config.gamma_decay_passes
        if self.method.schedule == "constant" or pass_number >= length:
            return least
        return 0.5 * (1 + math.cos(math.pi * pass_number / length)) * (1 - least) + least

    def step(self, images: Array, texts: Array, scale: float, ids: NDArray, step: int) -> Result:
        count, method = len(ids), self.method
        pass_number = step // self.steps_per_pass
        tau = self._step_temperatures(scale, ids)
        value, slope = 0.0, np.zeros((count, count))  # by the cosines
        tau_slopes = np.zeros((count, 2))
        log_slopes = np.zeros((count, 2))  # of log(eps + g) by tau
        for side, cosines in enumerate((images @ texts.T, texts @ images.T)):
            gaps = cosines - np.diag(cosines)[:, None]
            of_tau = tau[:, side, None]
            terms = np.where(np.eye(count), 0, np.exp(gaps / of_tau)) / (count - 1)
            g = terms.sum(1)
            gamma, old = self.gamma(pass_number), self.u[ids, side]
            u = np.where(np.isnan(old), g, (1 - gamma) * old + gamma * g)
            self.u[ids, side] = u
            outer = np.ones(count) if method.rule == "model" else tau[:, side]
            inner = np.log(self.config.eps + u)
            value += (outer * (inner + method.rho)).sum() / (2 * count)
            by_gap = terms / of_tau * (outer / (self.config.eps + u) / (2 * count))[:, None]
            part = by_gap - np.diag(by_gap.sum(1))
            slope += part.T if side else part
            by_tau = (terms * -gaps / of_tau**2).sum(1) / (self.config.eps + u)
            log_slopes[:, side] = by_tau
            repeats = 2 if self.config.doubled_temperature_gradient else 1
            repeats = 1 if method.rule == "individual" else repeats
            tau_slopes[:, side] = inner + method.rho + repeats * tau[:, side] * by_tau
        by_scale = 0.0
        if method.rule == "model":
            repeats = 2 if self.config.doubled_temperature_gradient else 1
            by_scale = -float(log_slopes.mean(0).sum() / 2) / scale**2 * repeats
        self._learn(tau_slopes, ids, pass_number)
        return Result(float(value), slope @ texts, slope.T @ images, by_scale)

    def _step_temperatures(self, scale: float, ids: NDArray) -> Array:
        if self.method.rule == "individual":
            return self.tau[ids].copy()
        one = 1 / scale if self.method.rule == "model" else self.global_tau
        return np.full((len(ids), 2), one)

    def _learn(self, slopes: Array, ids: NDArray, pass_number: int) -> None:
        config, low, high = self.config, self.config.temperature_min, self.config.temperature_max
        if self.method.rule == "global":
            self.updates += 1
            rate = self.method.learning_rate / (3 if self.global_tau <= 0.03 else 1)
            gradient = -self.global_tau * slopes.mean()
            move, self.global_moments = _adam(
                gradient, self.global_moments, config.temperature_betas, self.updates,
                config.temperature_adam_eps,
            )  # fmt: skip
            log_scale = -math.log(self.global_tau) - rate * move
            self.global_tau = float(np.clip(math.exp(-log_scale), low, high))
        elif self.method.rule == "individual":
            betas = config.temperature_betas if pass_number else (0.0, 0.0)
            move, self.moments[:, ids] = _adam(
                np.clip(slopes, -5, 5), self.moments[:, ids], betas, pass_number + 1,
                config.temperature_adam_eps,
            )  # fmt: skip
            moved = self.tau[ids] - self.method.learning_rate * move
            self.tau[ids] = np.clip(moved, low, high)


def _adam(gradient, moments, betas, updates, eps):
    moments = np.stack(
        [
            betas[0] * moments[0] + (1 - betas[0]) * gradient,
            betas[1] * moments[1] + (1 - betas[1]) * gradient**2,
        ]
    )
    first, second = moments[0] / (1 - betas[0] ** updates), moments[1] / (1 - betas[1] ** updates)
    return first / (np.sqrt(second) + eps), moments
