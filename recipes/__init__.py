"""Recipes: one function each, one full run each.

`python train.py NAME` runs a recipe; its function's docstring holds the command, the data, the
hardware and the measured result.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from recipes.demo import demo, draw_demo_data
from recipes.flickr8k import flickr8k, require_flickr8k
from training.config import TrainConfig

__all__ = ["RECIPES", "Recipe", "find_recipe"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A named run and what must be there before it starts."""

    build: Callable[[], TrainConfig]
    """Gives the configuration; its docstring describes the run."""
    prepare: Callable[[TrainConfig], None]
    """Makes the data, or raises FileNotFoundError with the command that makes them."""


RECIPES = {
    "demo": Recipe(build=demo, prepare=draw_demo_data),
    "flickr8k": Recipe(build=flickr8k, prepare=require_flickr8k),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: there is none; names the nearest one.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"there is no recipe {name!r}; {hint}Recipes: {', '.join(RECIPES)}")
