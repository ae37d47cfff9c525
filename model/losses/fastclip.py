"""SogCLR, iSogCLR and FastCLIP v0 to v3 (Wei et al. 2024, arXiv 2407.01445).

A softmax over a small batch misjudges what it would be over the whole data set. These losses keep
for every sample and side a running estimate u of the mean over negatives

    g_i = mean_{j != i} exp((c_ij - c_ii) / tau)

and take the gradient of tau * log(eps + g) with u in place of g where g stands in a denominator.
Everything is done with log u, so that nothing overflows at a temperature of 0.01.

Half the published objectives is computed, as CLIP's loss is the mean of two directions. v0 leaves
out the factor tau, as published; v2 weighs each anchor by its own temperature, as its objective
says and the released code does not. See docs/losses.md for all differences.

Shapes: W ranks, b image-text pairs on each, B = W * b pairs in all, d length of a feature; [b, 2]
holds what belongs to an image in column 0, to a text in column 1.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import torch
from torch import Tensor

from tessera.model.losses.base import ContrastiveLoss, check_features, compared_captions
from tessera.model.losses.config import GammaSchedule, LossConfig
from tessera.model.losses.ranks import Ranks
from tessera.model.losses.sample_state import SampleState
from tessera.model.losses.temperature import GlobalTemperature, updated_individual
from tessera.model.losses.tiles import Pairs, SoftmaxWeights, with_gradients

SIDES = ("image", "text")
"""Names of the two columns of a [b, 2]."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Estimates:
    """What a step finds for the anchors of this rank, [b, 2] each."""

    log_sum_exp: Tensor
    """Over the scaled cosines of the negatives."""
    log_u: Tensor
    """The running estimates with this batch taken in."""
    log_denominator: Tensor
    """log(eps + u)."""
    ratio: Tensor
    """g / (eps + u), at most 1 / gamma."""
    mean_gap: Tensor
    """c_ij - c_ii expected under the softmax over negatives."""


class FastClipLoss(ContrastiveLoss):
    """The family; `LossConfig.kind` picks the member."""

    def __init__(
        self,
        config: LossConfig,
        *,
        num_samples: int,
        steps_per_pass: Fraction | int,
        passes_before: Fraction | int = 0,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self._config = config
        self._method = config.method()
        self._steps_per_pass = steps_per_pass
        self._passes_before = passes_before
        self._ranks = ranks
        kept = {"log_u": 0.0}
        if self._method.rule == "individual":
            kept |= {"temperature": self._method.temperature}
            kept |= {"first_moment": 0.0, "second_moment": 0.0}
        self._kept = tuple(kept)
        columns = {f"{name}_{side}": value for name, value in kept.items() for side in SIDES}
        self._samples = SampleState(num_samples, columns, ranks)
        self._learned = GlobalTemperature(config) if self._method.rule == "global" else None
        self._latest: Tensor
        start = torch.tensor(self._method.temperature)
        self.register_buffer("_latest", start, persistent=False)

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
        """See `ContrastiveLoss`; needs the ids, and at least two pairs in all."""
        del logit_bias
        check_features(image_features, text_features)
        ids = self._checked(sample_ids, len(image_features))
        captions = compared_captions(self._config, captions, image_features, text_features)
        with torch.autocast(image_features.device.type, enabled=False):
            images, texts = image_features.float(), text_features.float()
            return self._value(images, texts, logit_scale.float(), ids, captions, step)

    @property
    def owns_temperature(self) -> bool:
        """True but for v0, which trains the model's logit scale."""
        return self._method.rule != "model"

    def temperature(self) -> Tensor | None:
        """The temperature; of individual ones, the mean over the latest global batch."""
        if self._learned is not None:
            return self._learned.value()
        return self._latest if self.owns_temperature else None

    def state_tensors(self) -> dict[str, Tensor]:
        """Columns [num_samples] by sample, and v3's temperature with its moments, [] each."""
        learned = {} if self._learned is None else self._learned.state_dict()
        return self._samples.tensors() | {
            f"temperature.{name}": value.cpu().clone() for name, value in learned.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `ContrastiveLoss`."""
        prefix = "temperature."
        learned = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        wanted = set() if self._learned is None else set(self._learned.state_dict())
        if set(learned) != wanted:
            kept, found = (", ".join(sorted(names)) for names in (wanted, learned))
            raise ValueError(
                f"{self._config.kind} keeps {kept or 'no learned temperature'}, the checkpoint has "
                f"{found or 'none'}: resume with the loss that the run began with"
            )
        self._samples.load(
            {name: value for name, value in tensors.items() if not name.startswith(prefix)}
        )
        if self._learned is not None:
            self._learned.load_state_dict(learned)

    def _checked(self, sample_ids: Tensor | None, num_pairs: int) -> Tensor:
        """Ids [B] of all ranks."""
        if sample_ids is None or sample_ids.shape != (num_pairs,):
            raise ValueError(f"{self._config.kind} needs sample_ids, one for each of the pairs")
        if num_pairs * self._ranks.size < 2:
            raise ValueError(f"{self._config.kind} needs a global batch of 2 pairs or more")
        # On a GPU the check would wait for the device.
        outside = not sample_ids.is_cuda and (
            sample_ids.min() < 0 or sample_ids.max() >= self._samples.num_samples
        )
        if outside:
            raise ValueError(
                f"sample_ids must lie in 0 .. {self._samples.num_samples - 1}, the rows of the "
                f"index, got {int(sample_ids.min())} .. {int(sample_ids.max())}"
            )
        return self._ranks.gather(sample_ids)

    def _value(
        self,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        ids: Tensor,
        captions: Tensor | None,
        step: int,
    ) -> Tensor:
        """The loss of this rank's anchors, with the gradient of all by its features."""
        with torch.no_grad():
            pairs = Pairs(
                images,
                texts,
                self._ranks,
                self._config.tile_size,
                captions=captions,
                ignore_same=captions is not None,
            )
            known, seen = self._known(pairs, ids)
            tau = self._temperatures(known, scale, len(images))
            positives = (pairs.images * pairs.texts).sum(1, keepdim=True)
            pass_number = self._pass_number(step)
            gamma = inner_rate(
                self._method.schedule,
                self._method.gamma,
                pass_number,
                self._config.gamma_decay_passes,
            )
            found = self._estimates(pairs, tau, positives, known["log_u"], seen, gamma)
            # Derivative of an anchor's term by c_ij: factor * ratio * (softmax over negatives).
            factor = torch.ones_like(tau) if self.owns_temperature else 1 / tau
            outer = factor * tau * (found.log_denominator + self._method.rho)
            value = outer.mean(0).sum() / 2
            shift = found.log_sum_exp - factor.log() - found.ratio.log()
            new = self._updated(found, known, tau, pass_number)
            anchors, new = self._gathered([1 / tau, shift], new)
            if self.training:
                self._store(ids, new)
            weights = SoftmaxWeights(
                image_scale=anchors[:, 0],
                image_shift=anchors[:, 2],
                text_scale=anchors[:, 1],
                text_shift=anchors[:, 3],
            )
            by_positive = (factor * found.ratio).sum(1, keepdim=True)
            by_scale = torch.zeros_like(scale)
            if not self.owns_temperature:
                by_scale = self._repeats() * (found.ratio * found.mean_gap).mean(0).sum() / 2

        def gradients() -> tuple[Tensor, Tensor, Tensor]:
            by_images, by_texts = pairs.gradients(weights)
            by_images = (by_images - by_positive * pairs.texts) / (2 * len(images))
            by_texts = (by_texts - by_positive * pairs.images) / (2 * len(texts))
            return by_images, by_texts, by_scale

        return with_gradients(value, (images, texts, scale), gradients)

    def _pass_number(self, step: int) -> int:
        """Whole passes over the data before the first sample of a step."""
        return math.floor(self._passes_before + Fraction(step) / self._steps_per_pass)

    def _known(self, pairs: Pairs, ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What was kept of this rank's samples, [b, 2] each, and [b, 1], which were seen."""
        columns, seen = self._samples.read(ids)
        known = {
            name: pairs.own(torch.stack([columns[f"{name}_{side}"] for side in SIDES], 1))
            for name in self._kept
        }
        return known, pairs.own(seen)[:, None]

    def _temperatures(self, known: dict[str, Tensor], scale: Tensor, num_pairs: int) -> Tensor:
        """[b, 2], the temperature of each anchor in this step."""
        if "temperature" in known:
            return known["temperature"]
        temperature = self.temperature()
        return (1 / scale if temperature is None else temperature).expand(num_pairs, 2)

    def _estimates(
        self,
        pairs: Pairs,
        tau: Tensor,
        positives: Tensor,
        log_u: Tensor,
        seen: Tensor,
        gamma: float,
    ) -> Estimates:
        of_images, of_texts = pairs.softmax(1 / tau[:, 0], 1 / tau[:, 1], with_mean=True)
        log_sum_exp = torch.stack((of_images.log_sum_exp, of_texts.log_sum_exp), 1)
        log_g = log_sum_exp - positives / tau - pairs.log_num_negatives()
        log_u = moving_log_average(log_u, log_g, seen, gamma)
        log_denominator = torch.logaddexp(log_u, torch.full_like(log_u, math.log(self._config.eps)))
        return Estimates(
            log_sum_exp=log_sum_exp,
            log_u=log_u,
            log_denominator=log_denominator,
            ratio=(log_g - log_denominator).exp(),
            mean_gap=torch.stack((of_images.mean_cosine, of_texts.mean_cosine), 1) - positives,
        )

    def _updated(
        self, found: Estimates, known: dict[str, Tensor], tau: Tensor, pass_number: int
    ) -> dict[str, Tensor]:
        """What is to be kept of this rank's samples; the global temperature learns here."""
        similar = found.ratio * found.mean_gap / tau
        slope = found.log_denominator + self._method.rho - self._repeats() * similar
        if self._method.rule == "individual":
            learned = updated_individual(self._config, known, slope, pass_number)
            return {"log_u": found.log_u, **learned}
        if self._learned is not None and self.training:
            self._learned.update(self._ranks.sum(slope.mean()) / self._ranks.size)
        return {"log_u": found.log_u}

    def _repeats(self) -> int:
        """How often the similarities count in the gradient by a global temperature."""
        doubled = self._config.doubled_temperature_gradient
        return 2 if doubled and self._method.rule != "individual" else 1

    def _gathered(
        self, terms: list[Tensor], new: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms [B, 2 * len(terms)] and what is to be kept [B, 2] of all ranks."""
        every = self._ranks.gather(torch.cat((*terms, *new.values()), 1))
        widths = [2 * len(terms)] + [2] * len(new)
        anchors, *columns = every.split(widths, 1)
        return anchors, dict(zip(new, columns, strict=True))

    def _store(self, ids: Tensor, new: dict[str, Tensor]) -> None:
        columns = {
            f"{name}_{side}": values[:, place]
            for name, values in new.items()
            for place, side in enumerate(SIDES)
        }
        self._samples.write(ids, columns)
        if "temperature" in new:
            self._latest.copy_(new["temperature"].mean())


def inner_rate(schedule: GammaSchedule, gamma: float, pass_number: int, decay_passes: int) -> float:
    """Inner learning rate of a pass; 1 in the first, `gamma` after the last of the schedule.

    Args:
        schedule: its course in between.
        gamma: where it ends.
        pass_number: passes before this one.
        decay_passes: length of the cosine.
    """
    if pass_number == 0:
        return 1.0
    if schedule == "constant" or pass_number >= decay_passes:
        return gamma
    return (1 + math.cos(math.pi * pass_number / decay_passes)) / 2 * (1 - gamma) + gamma


def moving_log_average(log_u: Tensor, log_g: Tensor, seen: Tensor, gamma: float) -> Tensor:
    """log((1 - gamma) * u + gamma * g); log g where there is no u yet.

    Args:
        log_u: [b, 2].
        log_g: [b, 2].
        seen: [b, 1] bool, whether u was written before.
        gamma: inner learning rate, in (0, 1].
    """
    if gamma == 1:
        return log_g
    mixed = torch.logaddexp(log_u + math.log1p(-gamma), log_g + math.log(gamma))
    return torch.where(seen, mixed, log_g)
