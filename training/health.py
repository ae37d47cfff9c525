"""Signs that a run goes wrong while its loss is still a number: each is told once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise

from tessera.training.config import TrainConfig
from tessera.training.metrics import StepRecord

_WINDOW = 50
"""Steps that are looked at together."""
_NEAR_CHANCE = 0.05
"""Nats below ln B at which a loss counts as that of guessing."""
_LEAST_FALL = 0.01
"""Share by which a score must have fallen since its best."""


class Health:
    """Watches the steps of a stage for a collapsed model and for a logit scale at its bound."""

    def __init__(self, config: TrainConfig) -> None:
        """Begin with no steps.

        Args:
            config: of the stage.
        """
        self._config = config
        self._recent: deque[StepRecord] = deque(maxlen=_WINDOW)
        self._told: set[str] = set()

    def warnings(self, records: Sequence[StepRecord]) -> list[str]:
        """Look at the steps since the last call; a sentence for each thing that is new."""
        found: dict[str, str] = {}
        for record in records:
            self._recent.append(record)
            if len(self._recent) == _WINDOW:
                found |= self._signs(record)
        new = [text for sign, text in found.items() if sign not in self._told]
        self._told |= found.keys()
        return new

    def _signs(self, last: StepRecord) -> dict[str, str]:
        config, optim = self._config, self._config.optim
        scales = [record.logit_scale for record in self._recent]
        signs = {}
        if min(scales) >= 0.999 * optim.max_logit_scale:
            signs["upper"] = (
                f"the logit scale has been at its upper bound {optim.max_logit_scale:g} for "
                f"{_WINDOW} steps: --optim.max-logit-scale raises it"
            )
        if max(scales) <= 1.001 * optim.min_logit_scale:
            signs["lower"] = (
                f"the logit scale has been at its lower bound {optim.min_logit_scale:g} for "
                f"{_WINDOW} steps: the model separates nothing"
            )
        loss = sum(record.loss for record in self._recent) / _WINDOW
        chance = math.log(config.batch_size)
        rising = last.lr < 0.999 * optim.peak(config.batch_size) and self._is_warming_up()
        if self._has_known_chance() and not rising and loss >= chance - _NEAR_CHANCE:
            signs["collapse"] = (
                f"the loss is {loss:.3f} at step {last.step}, and guessing among "
                f"{config.batch_size} pairs gives {chance:.3f}: the model has collapsed or learns "
                "nothing. Try a lower learning rate or a longer warm-up, and look at the pairs "
                "with tools/inspect_batch.py"
            )
        return signs

    def _is_warming_up(self) -> bool:
        """Whether the rate rose over all steps that are remembered."""
        rates = [record.lr for record in self._recent]
        return all(b > a for a, b in pairwise(rates))

    def _has_known_chance(self) -> bool:
        """Whether guessing gives ln B: one text each, scored by CLIP's own loss."""
        config, side = self._config, self._config.text_side
        several = config.data.every_text or side.keep_text or side.distill
        return config.loss.kind == "clip" and not several


def falling_scores(evaluations: Sequence[tuple[int, Mapping[str, float]]]) -> str | None:
    """Tell that held-out scores fall from evaluation to evaluation.

    Args:
        evaluations: step and scores (shares by name) of each, oldest first.

    Returns:
        A warning if a score fell twice in a row, to at least a hundredth below its best.
    """
    if len(evaluations) < 3:
        return None
    step, last = evaluations[-1]
    fallen = []
    for name, value in last.items():
        series = [(at, scores[name]) for at, scores in evaluations if name in scores]
        if len(series) < 3 or not series[-3][1] > series[-2][1] > value:
            continue
        best_step, best = max(series, key=lambda item: item[1])
        if best - value >= _LEAST_FALL:
            fallen.append(f"{name} {best:.1%} at step {best_step}, now {value:.1%}")
    if not fallen:
        return None
    return (
        f"held-out scores fall while training goes on (step {step}): {'; '.join(fallen)}. The "
        "model overfits: use more data, stronger masks or crops, or a shorter run"
    )
