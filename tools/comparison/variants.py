"""What is compared: recipes as they are, or their masks on another recipe's data and model."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tessera.pipeline.masking import MaskConfig
from tessera.recipes import RECIPES, find_recipe
from tessera.recipes.clip import clip
from tessera.training.config import to_json
from tessera.training.config_differences import differences

_FILLED = {
    "fill-03": ("cluster-rgb-03", ("--mask.mode", "fill")),
    "fill-05": ("cluster-rgb-05", ("--mask.mode", "fill", "--mask.threshold", "0.5")),
}
"""The released code's way of Cluster Masking, as recipes/cluster_masking.py describes it."""
_OWN_OF_A_RECIPE = ("recipe", "run_dir", "mask.")
_KEYS = {"like", "words"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One of the things compared."""

    name: str
    """How tables and folders call it."""
    recipe: str
    """Recipe that `train.py` is given."""
    words: tuple[str, ...] = ()
    """Words after it."""


def find_variant(name: str, base: str) -> Variant:
    """The variant of a name: a recipe's, `fill-03` or `fill-05`.

    Args:
        name: which.
        base: the recipe whose data, model and schedule all variants take; the variant then gives
            only its mask. Empty: every variant is run as its own recipe.

    Raises:
        ValueError: there is no such recipe, or it differs from `clip` in more than its mask.
    """
    recipe, more = _FILLED.get(name, (name, ()))
    config = find_recipe(recipe).build()
    if not base:
        return Variant(name=name, recipe=recipe, words=more)
    beyond = [
        line
        for line in differences(to_json(clip()), to_json(config))
        if not line.startswith(_OWN_OF_A_RECIPE)
    ]
    if beyond and recipe != base:
        raise ValueError(
            f"{name} differs from clip in more than its mask, which does not carry over to {base}; "
            "write what it should be into a file for --variants-file:\n  " + "\n  ".join(beyond)
        )
    own = find_recipe(base).build().mask
    return Variant(name=name, recipe=base, words=(*mask_words(config.mask, own), *more))


def choose_variants(names: Sequence[str], path: Path | None, base: str) -> list[Variant]:
    """The variants that a person names, in their order, and after them the rest of the file's.

    Args:
        names: recipes, `fill-03`, `fill-05`, or tables of the file; the first is the baseline.
        path: TOML file of further variants, as for `read_variants`.
        base: as for `find_variant`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name is neither a recipe's nor a table's, or as for the other two functions.
    """
    own = {each.name: each for each in read_variants(path, base)} if path else {}
    chosen = [own[name] if name in own else find_variant(name, base) for name in names]
    return [*chosen, *(each for name, each in own.items() if name not in names)]


def read_variants(path: Path, base: str) -> list[Variant]:
    """Variants from a TOML file: a table each, with `like` (a name) and `words` (more words).

        [flip-50-twice-the-batch]
        like = "flip-50"
        words = "--batch-size 256 --optim.base-batch-size 128"

    Args:
        path: the file.
        base: as for `find_variant`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML, a table has other keys or values, or the name of a recipe.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    found = []
    for name, content in tables.items():
        if name in RECIPES or name in _FILLED:
            raise ValueError(f"{path}: [{name}] is the name of a variant already: choose another")
        like, words = _checked(path, name, content)
        known = find_variant(like, base)
        found.append(
            Variant(name=name, recipe=known.recipe, words=(*known.words, *shlex.split(words)))
        )
    return found


def mask_words(mask: MaskConfig, own: MaskConfig) -> tuple[str, ...]:
    """Words that make of a recipe with the mask `own` one with `mask`."""
    words: list[str] = []
    for name in (each.name for each in fields(MaskConfig)):
        value = getattr(mask, name)
        if name == "kind" or value != getattr(own, name):
            values = map(str, value) if isinstance(value, tuple) else [str(value)]
            words += [f"--mask.{name.replace('_', '-')}", *values]
    return tuple(words)


def _checked(path: Path, name: str, content: Any) -> tuple[str, str]:
    is_sound = isinstance(content, dict) and "like" in content and content.keys() <= _KEYS
    if not is_sound or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(
            f'{path}: [{name}] needs like = "VARIANT" and may have words = "--field value ...", '
            "nothing else"
        )
    return content["like"], content.get("words", "")
