"""What tells two configurations apart, and which of it makes another run."""

from __future__ import annotations

import re
import shlex
from copy import deepcopy
from typing import Any

from tessera.training.config import OptimConfig, StageConfig, TrainConfig, to_json

_FREE_TO_CHANGE = (
    "run_dir",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "evaluate_every",
    "evaluation",
    "watch",
    "data.device",
    "data.num_threads",
    "data.cache",
    "data.prefetch",
    "num_threads",
    "loss.tile_size",
    "distributed",
    "accumulation",
    "checkpoint_blocks",
    "log_sample_ids",
)
"""Fields that may differ when a run is continued: they do not decide what is learned."""
PLANNED = "planned_samples"
"""Of a stored configuration: the length that the run began with, where it was extended since."""
_STAGE = re.compile(r"^stages\.\d+\.")


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Fields whose change would make another run of it.

    A warm-up counts in pairs, however it is given: a share is one of the length that the run began
    with. A field that the stored configuration lacks, of an older edition, counts as its default.

    Args:
        before: configuration of the run on disk, from `to_json`.
        now: the one asked for.

    Returns:
        One line a field: its name, the value before and the value now.
    """
    planned = before.get(PLANNED, before["total_samples"])
    old, new = (flatten(_in_pairs(tree, planned)) for tree in (before, now))
    return [
        f"{name}: was {_word(old.get(name))}, now {_word(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if _value(old, name) != _value(new, name) and not _is_free(name)
    ]


def changed_fields(recipe: TrainConfig, now: TrainConfig) -> list[str]:
    """What a configuration changes of its recipe's, as options of the command line."""
    old, new = flatten(to_json(recipe)), flatten(to_json(now))
    return [
        f"{option(name, value)}  (the recipe: {_word(old.get(name))})"
        for name, value in new.items()
        if old.get(name) != value
    ]


def option(name: str, value: Any) -> str:
    """A field as an option of the command line, quoted for a shell."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        head, _, last = name.rpartition(".")
        dotted = f"{head}." if head else ""
        return f"--{name}" if value else f"--{dotted}no-{last}"
    return f"--{name} {_word(value)}"


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one level, names joined with dots as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _word(value: Any) -> str:
    """A value as a person would type it."""
    if isinstance(value, list):
        return " ".join(map(_word, value))
    return shlex.quote(str(value))


def _is_free(name: str) -> bool:
    return name == PLANNED or _STAGE.sub("", name).startswith(_FREE_TO_CHANGE)


def _value(flat: dict[str, Any], name: str) -> Any:
    if name in flat:
        return flat[name]
    defaults = _STAGE_DEFAULTS if _STAGE.match(name) else _DEFAULTS
    return defaults.get(_STAGE.sub("", name))


def _in_pairs(tree: dict[str, Any], total_samples: int) -> dict[str, Any]:
    """The same with each warm-up in pairs."""
    tree = deepcopy(tree)
    parts = [(tree, total_samples)]
    parts += [(stage, stage["total_samples"]) for stage in tree.get("stages", [])]
    for part, length in parts:
        share = part["optim"].pop("warmup", 0.0)
        if part["optim"].get("warmup_samples") is None:
            part["optim"]["warmup_samples"] = OptimConfig(warmup=share).warmup_pairs(length)
    return tree


_DEFAULTS = flatten(
    to_json(TrainConfig(recipe="", run_dir="", model="", total_samples=2, batch_size=2))
)
_STAGE_DEFAULTS = {
    name.removeprefix("stages.0."): value
    for name, value in flatten(
        to_json(
            TrainConfig(
                recipe="", run_dir="", model="", total_samples=2, batch_size=2,
                stages=(StageConfig(total_samples=2, optim=OptimConfig()),),
            )
        )
    ).items()
    if name.startswith("stages.0.")
}  # fmt: skip
