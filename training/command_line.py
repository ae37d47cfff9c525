"""From the words after `python train.py` to a recipe and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from training.config import TrainConfig
from training.miniature import miniature

DEFAULT_RECIPE = "demo"


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the person asked for."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The recipe's configuration with the overrides applied."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show what would run (configuration, sizes, sample budget), and end."""
    restart: tyro.conf.FlagCreatePairsOff[bool] = False
    """Remove the run found in run_dir and begin again."""
    mini: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the recipe's miniature: the same code on a tiny model and drawn pictures, in less than a
    minute on a CPU."""


def parse(
    argv: Sequence[str], build_recipe: Callable[[str], TrainConfig], description: str
) -> Command:
    """Parse `[recipe] [--mini] [--section.field value ...]`; fields change the miniature too.

    Args:
        argv: words after the program's name.
        build_recipe: from a recipe's name to its configuration.
        description: shown by --help.

    Raises:
        ValueError: there is no such recipe.
        SystemExit: status 2 for a wrong option or value, 0 after --help.
    """
    named = bool(argv) and not argv[0].startswith("-")
    name = argv[0] if named else DEFAULT_RECIPE
    config = build_recipe(name)
    return tyro.cli(
        Command,
        args=list(argv[1:] if named else argv),
        default=Command(config=miniature(config) if "--mini" in argv else config),
        prog=f"train.py {name}",
        description=description,
    )
