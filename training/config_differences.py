"""What tells two configurations apart, and which of it makes another run."""

from __future__ import annotations

import re
from typing import Any

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


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Fields whose change would make another run of it.

    Args:
        before: configuration of the run on disk, from `to_json`.
        now: the one asked for.

    Returns:
        One line a field: its name, the value before and the value now.
    """
    old, new = flatten(before), flatten(now)
    return [
        f"{name}: was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and not re.sub(r"^stages\.\d+\.", "", name).startswith(_FREE_TO_CHANGE)
    ]


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
