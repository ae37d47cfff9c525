"""From the words after `python train.py` to a recipe and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from tessera.training.config import TrainConfig
from tessera.training.miniature import miniature

DEFAULT_RECIPE = "demo"


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the person asked for."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The recipe's configuration with the overrides applied."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Check what a start checks, show what would run (what is changed, sizes, memory, time), and
    end."""
    verbose: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --dry-run, list every field as well."""
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
    name, words = _split(argv)
    return tyro.cli(
        Command,
        args=words,
        default=Command(config=unchanged(argv, build_recipe)),
        prog=f"train.py {name}",
        description=description,
    )


def unchanged(argv: Sequence[str], build_recipe: Callable[[str], TrainConfig]) -> TrainConfig:
    """The configuration that the words begin from, before any field is changed.

    Args:
        argv: words after the program's name.
        build_recipe: from a recipe's name to its configuration.

    Raises:
        ValueError: there is no such recipe.
    """
    config = build_recipe(_split(argv)[0])
    return miniature(config) if "--mini" in argv else config


def with_options(argv: Sequence[str], options: Mapping[str, str]) -> list[str]:
    """The same words with other values of some options, and without --restart.

    Args:
        argv: words after the program's name, as the person gave them.
        options: values by the name of the option, such as `--mask.kind`.
    """
    kept: list[str] = []
    skipping = False
    for word in argv:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("_", "-")
            skipping = name in options or name == "--restart"
        if not skipping:
            kept.append(word)
    return kept + [word for pair in options.items() for word in pair]


def _split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe's name, and the words after it."""
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    return DEFAULT_RECIPE, list(argv)
