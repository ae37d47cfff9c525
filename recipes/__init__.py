"""Recipes: one function each, one full run each.

`python train.py NAME` runs a recipe, `python train.py --list` lists them; a recipe's docstring
holds the command, the data, the cost, the results and what differs from the paper.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tessera.pipeline.index.dataset import parse_reference
from tessera.recipes import (
    clip,
    clipa,
    cluster_masking,
    demo,
    fastclip,
    flip,
    laclip,
    llm2clip,
    veclip,
)
from tessera.recipes.datasets import require_index
from tessera.recipes.flickr8k import flickr8k, require_flickr8k
from tessera.training import miniature
from tessera.training.config import TrainConfig

__all__ = ["RECIPES", "Recipe", "find_recipe", "list_recipes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A named run and what must be there before it starts."""

    build: Callable[[], TrainConfig]
    """Gives the configuration; its docstring describes the run."""
    require_data: Callable[[TrainConfig], None] = require_index
    """Makes the data, or raises FileNotFoundError with the command that makes them."""

    def makes_data(self, config: TrainConfig) -> bool:
        """Whether `prepare` makes the training data of this run itself, where they are missing."""
        drawn = [miniature.TRAIN]
        if self.require_data is demo.draw_demo_data:
            drawn.append(Path(demo.demo().data.train_references[0]))
        return all(
            parse_reference(each).index_dir in drawn for each in config.data.train_references
        )

    def prepare(self, config: TrainConfig) -> None:
        """Make the data of a run of this recipe, as far as they are its own.

        Args:
            config: the recipe's, its miniature's, or either with fields changed.

        Raises:
            FileNotFoundError: data are missing; gives the command that makes them.
        """
        from tessera.recipes.miniature_data import draw_miniature_data

        draw_miniature_data(config)
        self.require_data(config)


RECIPES = {
    "demo": Recipe(build=demo.demo, require_data=demo.draw_demo_data),
    "flickr8k": Recipe(build=flickr8k, require_data=require_flickr8k),
    "clip": Recipe(build=clip.clip),
    "clip-laion": Recipe(build=clip.clip_laion),
    "flip-50": Recipe(build=flip.flip_50),
    "flip-75": Recipe(build=flip.flip_75),
    "flip-50-scaled": Recipe(build=flip.flip_50_scaled),
    "flip-75-scaled": Recipe(build=flip.flip_75_scaled),
    "flip-50-laion": Recipe(build=flip.flip_50_laion),
    "flip-75-laion": Recipe(build=flip.flip_75_laion),
    "cluster-rgb-03": Recipe(build=cluster_masking.cluster_rgb_03),
    "cluster-rgb-05": Recipe(build=cluster_masking.cluster_rgb_05),
    "cluster-embedding": Recipe(build=cluster_masking.cluster_embedding),
    "cluster-kmeans": Recipe(build=cluster_masking.cluster_kmeans),
    "clipa-resize": Recipe(build=clipa.clipa_resize),
    "clipa-random": Recipe(build=clipa.clipa_random),
    "clipa-grid": Recipe(build=clipa.clipa_grid),
    "clipa-block": Recipe(build=clipa.clipa_block),
    "clipa-b16": Recipe(build=clipa.clipa_b16),
    "clipa-l16": Recipe(build=clipa.clipa_l16),
    "clipa-l16-t8": Recipe(build=clipa.clipa_l16_t8),
    "clipa-h14": Recipe(build=clipa.clipa_h14),
    "laclip": Recipe(build=laclip.laclip),
    "laclip-mt": Recipe(build=laclip.laclip_mt),
    "veclip": Recipe(build=veclip.veclip),
    "veclip-dfn": Recipe(build=veclip.veclip_dfn),
    "fastclip": Recipe(build=fastclip.fastclip),
    "llm2clip": Recipe(build=llm2clip.llm2clip, require_data=llm2clip.require_embeddings),
    "llm2clip-distilled": Recipe(
        build=llm2clip.llm2clip_distilled, require_data=llm2clip.require_embeddings
    ),
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


def list_recipes() -> list[str]:
    """A line for each recipe: its name and the first line of its docstring."""
    width = max(map(len, RECIPES))
    return [
        f"{name:{width}}  {(recipe.build.__doc__ or '').splitlines()[0]}"
        for name, recipe in RECIPES.items()
    ]
