"""How fast is a training step, and what holds it up?

    python tools/benchmark_train.py compare --model ViT-B-16 --batch-size 16
    python tools/benchmark_train.py recipe flickr8k --steps 20
    python tools/benchmark_train.py profile --model ViT-B-16 --batch-size 16

compare times one step (forward, loss, backward, optimiser) of Tessera against open_clip on the same
model, batch, precision and machine: open_clip as it is, with patch dropout 0.5, and in the padded
shapes of cluster masking's released code; ours unmasked and masked. Each side has a process of its
own; they take turns, every other round backwards, after a round that is not counted. No data are
needed.

recipe takes real steps of a recipe, first with the live loader, then again and again with one batch
that is kept: the second rate is what training could reach if data cost nothing.

profile lists the kernels of our step, 50% masked unless --mask-ratio says otherwise, and how much
of the device's time is matrix work.

Nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import open_clip
import torch
import tyro

from tessera.model.config import clip_config
from tessera.recipes import find_recipe
from tessera.tools.benchmarks import train_profile
from tessera.tools.benchmarks.train_comparison import (
    TITLES,
    Plan,
    SideName,
    caption_lengths,
    compare,
)
from tessera.tools.benchmarks.train_lengths import visible_patches
from tessera.tools.benchmarks.train_recipe import measure
from tessera.tools.benchmarks.train_sides import StepSetting
from tessera.tools.benchmarks.train_text import lines
from tessera.training.command_line import parse
from tessera.training.environment import machine, num_cores
from tessera.training.precision import Precision


@dataclass(frozen=True, kw_only=True)
class StepArguments:
    """What a training step is made of."""

    model: str = "ViT-B-16"
    """open_clip's name of the architecture."""
    batch_size: int = 16
    """Pairs of a step."""
    precision: Precision = "float32"
    """float32, bfloat16 (open_clip: autocast), or pure_bfloat16 (ours only)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the steps run; auto takes a GPU if there is one."""
    captions: str = "cc12m"
    """Lengths of our captions: cc12m (mean 20 tokens), full (the whole context), or those of an
    INDEX or INDEX@SELECTION. The others pad to the whole context."""
    threads: int = num_cores()
    """CPU threads of each side."""
    compile: bool = False
    """Compile the blocks of our towers."""

    def __post_init__(self) -> None:
        _at_least_one(self, "batch_size", "threads")
        if self.model not in open_clip.list_models():
            raise ValueError(f"open_clip has no model {self.model!r} to compare with")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no CUDA device: leave out --device cuda")

    @property
    def setting(self) -> StepSetting:
        """What all sides have in common."""
        found = "cuda" if torch.cuda.is_available() else "cpu"
        return StepSetting(
            model=self.model,
            batch_size=self.batch_size,
            device=found if self.device == "auto" else self.device,
            precision=self.precision,
            num_workers=self.threads,
            compile=self.compile,
        )


@dataclass(frozen=True, kw_only=True)
class CompareArguments(StepArguments):
    """One training step of Tessera against open_clip."""

    sides: tuple[SideName, ...] = tuple(TITLES)
    """Who takes part."""
    steps: int = 1
    """Steps of one turn."""
    repeats: int = 3
    """Counted rounds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "steps", "repeats")


@dataclass(frozen=True, kw_only=True)
class ProfileArguments(StepArguments):
    """Where the time of one training step of Tessera goes, kernel by kernel."""

    mask_ratio: float = 0.5
    """Share of patches that is masked."""
    steps: int = 3
    """Steps that are recorded."""
    warmup: int = 2
    """Steps before them, which are not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "steps", "warmup")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"--mask-ratio must be at least 0 and below 1, got {self.mask_ratio}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    mode, rest = next(iter(words), ""), words[1:]
    if mode in _RUN:
        return _RUN[mode](rest)
    asked_for_help = mode in ("-h", "--help")
    stream = sys.stdout if asked_for_help else sys.stderr
    print(program.describe(__doc__), file=stream)
    raise SystemExit(program.DONE if asked_for_help else program.WRONG_USE)


def run_compare(words: Sequence[str]) -> dict[str, Any]:
    """Time the sides and print the table."""
    prog = "benchmark_train.py compare"
    arguments = tyro.cli(CompareArguments, prog=prog, args=list(words))
    setting = arguments.setting
    plan = Plan(setting=setting, captions=arguments.captions, sides=arguments.sides)
    figures = compare(plan, num_steps=arguments.steps, repeats=arguments.repeats, progress=_say)
    result = {
        **_described(arguments),
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        **figures,
        "environment": _environment(setting),
    }
    print("\n".join(lines(result)))
    return result


def run_recipe(words: Sequence[str]) -> dict[str, Any]:
    """Time steps of a recipe and print the figures."""
    parser = argparse.ArgumentParser(
        prog="benchmark_train.py recipe",
        description="Real steps of a recipe, with live and with kept data.",
        epilog="All further words are for the recipe, as train.py takes them.",
    )
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each part")
    parser.add_argument("--warmup", type=int, default=3, help="steps before that, not counted")
    arguments, rest = parser.parse_known_args(list(words))
    config = parse(rest, lambda name: find_recipe(name).build(), "").config
    find_recipe(config.recipe).prepare(config)
    result = measure(config, arguments.steps, arguments.warmup)
    for name, value in result.items():
        print(f"{name:28} {value:,.3f}" if isinstance(value, float) else f"{name:28} {value}")
    return result


def run_profile(words: Sequence[str]) -> dict[str, Any]:
    """Profile our step and print its kernels."""
    prog = "benchmark_train.py profile"
    arguments = tyro.cli(ProfileArguments, prog=prog, args=list(words))
    setting = arguments.setting
    model = clip_config(setting.model)
    size, context = setting.batch_size, model.text.context_length
    torch.set_num_threads(setting.num_workers)
    setting = replace(
        setting,
        visible=visible_patches(size, model.vision.num_patches, arguments.mask_ratio),
        captions=caption_lengths(arguments.captions, size, context),
    )
    figures = train_profile.profile_step(
        setting, num_steps=arguments.steps, num_warmup=arguments.warmup
    )
    print("\n".join(train_profile.lines(figures)))
    return {
        **_described(arguments),
        "mask_ratio": arguments.mask_ratio,
        "steps": arguments.steps,
        **figures,
        "environment": _environment(setting),
    }


_RUN = {"compare": run_compare, "recipe": run_recipe, "profile": run_profile}


def _described(arguments: StepArguments) -> dict[str, Any]:
    return {
        "model": arguments.model,
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "captions": arguments.captions,
        "compile": arguments.compile,
    }


def _environment(setting: StepSetting) -> dict[str, object]:
    return {**machine(torch.device(setting.device)), "torch_threads": setting.num_workers}


def _at_least_one(arguments: StepArguments, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1, got {getattr(arguments, name)}")


def _say(text: str) -> None:
    """What happens now, for who watches."""
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
