"""What do the recipes cost?

    python tools/recipe_costs.py                            all recipes
    python tools/recipe_costs.py flip-50 --model ViT-L-16   one of them, as train.py takes it

Floating point operations of all stages by the model of tools/benchmarks/train_flops.py, with
captions of 20 tokens in the mean (assumed, cut at the context length) and patches by the
mask's own count. A GPU-hour is one at the rate given with --tflops, an assumption and no
measurement. Needs no data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split

from tessera.recipes import RECIPES, find_recipe
from tessera.tools.benchmarks.recipe_costs import Cost, recipe_cost
from tessera.training.command_line import parse
from tessera.training.config import TrainConfig

_TFLOPS = 300.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=program.describe(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tflops", type=float, default=_TFLOPS, help="assumed rate, TFLOP/s")
    arguments, rest = parser.parse_known_args(words)
    if arguments.tflops <= 0:
        parser.error(f"--tflops must be above 0, got {arguments.tflops}")
    costs = [recipe_cost(config) for config in _configs(rest)]
    print("\n".join(_table(costs, arguments.tflops)))
    return {"tflops": arguments.tflops, "recipes": [c.to_json() for c in costs]}


def _configs(words: Sequence[str]) -> list[TrainConfig]:
    if words:
        return [parse(words, lambda name: find_recipe(name).build(), "").config]
    return [recipe.build() for recipe in RECIPES.values()]


def _table(costs: Sequence[Cost], tflops: float) -> list[str]:
    return [
        f"{'recipe':18}{'M pairs':>10}{'GFLOP a pair':>14}{'EFLOP':>10}{'GPU-hours':>11}",
        *(
            f"{cost.recipe:18}{cost.pairs / 1e6:10,.1f}{cost.flops / cost.pairs / 1e9:14.1f}"
            f"{cost.flops / 1e18:10,.1f}{cost.gpu_hours(tflops):11,.0f}"
            for cost in costs
        ),
        f"GPU-hours at {tflops:g} TFLOP/s, assumed",
    ]


if __name__ == "__main__":
    sys.exit(main())
