"""Who takes part, and the figures that follow from their turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from tessera.pipeline.index.dataset import Dataset
from tessera.pipeline.storage import is_remote
from tessera.tools.benchmarks.dali_reader import DaliReaderSide, NvjpegSide
from tessera.tools.benchmarks.ladder import as_json, ladder
from tessera.tools.benchmarks.limits import FullDecodeSide, TransformSide
from tessera.tools.benchmarks.loaders import open_clip_side, torchvision_side
from tessera.tools.benchmarks.own import LoaderSide, StepwiseSide
from tessera.tools.benchmarks.side import Setting
from tessera.tools.benchmarks.turns import Entrant, Results, spread, take_turns

BASELINES = ("open_clip_transform", "open_clip", "torchvision", "dali_reader")
"""Every baseline there is."""
_LOADERS = {"open_clip": open_clip_side, "torchvision": torchvision_side}
_OURS = ("one_core", "all_cores", "loader")
_LIMITS = ("full_decode", "nvjpeg")


def compare(
    setting: Setting,
    dataset: Dataset,
    baselines: Sequence[str],
    *,
    num_batches: int,
    repeats: int,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    """Time all sides and work out the figures.

    Raises:
        RuntimeError: one of our own sides failed.
    """
    entrants, left_out = _entrants(setting, dataset, baselines)
    results = take_turns(entrants, num_batches=num_batches, repeats=repeats, progress=progress)
    results.left_out |= left_out
    for name in _OURS:
        if name in results.left_out:
            raise RuntimeError(f"our own side {name!r} failed: {results.left_out[name]}")
    limit = None
    if results.rates("full_decode"):
        limit = statistics.median(results.rates("full_decode"))
    return {
        "ladder": {
            "one_core": as_json(ladder(results.turns["one_core"], limit)),
            "all_cores": as_json(ladder(results.turns["all_cores"], _times(limit, setting))),
        },
        "limit": _limit(results),
        "gpu_limit": _gpu_limit(results),
        "sides": {name: results.summary(name) for name in results.turns},
        "ratios": _ratios(results),
        "bytes_per_image": _bytes_per_image(results, setting),
        "loader": _own_loader(results),
        "left_out": results.left_out,
    }


def _entrants(
    setting: Setting, dataset: Dataset, baselines: Sequence[str]
) -> tuple[dict[str, Entrant], dict[str, str]]:
    """The sides, and the baselines that cannot take part whatever is installed."""
    entrants = {
        "full_decode": Entrant(build=FullDecodeSide, setting=setting, one_core=True),
        "one_core": Entrant(build=_stepwise_on_one_core, setting=setting, one_core=True),
        "all_cores": Entrant(build=StepwiseSide, setting=setting),
        "loader": Entrant(build=LoaderSide, setting=setting),
    }
    if torch.cuda.is_available():
        entrants["nvjpeg"] = Entrant(build=NvjpegSide, setting=setting)
    left_out: dict[str, str] = {}
    whole_tars = ""
    if dataset.selection is not None:
        whole_tars = "it reads whole tars and cannot keep to a selection"
    elif any(map(is_remote, setting.shards)):
        whole_tars = "the shards are remote"
    for name in baselines:
        if name == "open_clip_transform":
            entrants[name] = Entrant(build=TransformSide, setting=setting, one_core=True)
        elif whole_tars:
            left_out[name] = whole_tars
        else:
            build = DaliReaderSide if name == "dali_reader" else _LOADERS[name]
            entrants[name] = Entrant(build=build, setting=setting)
    return entrants, left_out


def _stepwise_on_one_core(setting: Setting) -> StepwiseSide:
    return StepwiseSide(replace(setting, num_workers=1))


def _times(limit: float | None, setting: Setting) -> float | None:
    return limit * setting.num_workers if limit else None


def _limit(results: Results) -> dict[str, Any] | None:
    turns = results.turns.get("full_decode")
    if not turns:
        return None
    return {
        "what": "every pixel of the same files decoded, on one core, nothing else",
        "library": turns[0].known["library"],
        "images_per_s": spread(results.rates("full_decode")),
    }


def _gpu_limit(results: Results) -> dict[str, Any] | None:
    rates = results.rates("nvjpeg")
    if not rates:
        return None
    own = statistics.median(results.rates("loader"))
    return {
        "what": "every pixel of the same files decoded by nvJPEG on the GPU, nothing else",
        "images_per_s": spread(rates),
        "share_of_our_loader": own / statistics.median(rates),
    }


def _ratios(results: Results) -> dict[str, dict[str, float]]:
    """Ours over theirs, turn by turn: by wall clock, and by CPU time, which is less disturbed."""
    found: dict[str, dict[str, float]] = {}
    for name in results.turns:
        if name in (*_OURS, *_LIMITS):
            continue
        own = "one_core" if name == "open_clip_transform" else "loader"
        pairs = list(zip(results.turns[own], results.turns[name], strict=True))
        found[f"{own}_over_{name}"] = spread(
            [(a.num_images / a.seconds) / (b.num_images / b.seconds) for a, b in pairs]
        )
        if all(a.cpu_s and b.cpu_s for a, b in pairs):
            found[f"{own}_over_{name}_by_cpu_time"] = spread(
                [(a.num_images / a.cpu_s) / (b.num_images / b.cpu_s) for a, b in pairs]
            )
    return found


def _bytes_per_image(results: Results, setting: Setting) -> dict[str, float]:
    """What crosses to the model's device; open_clip's are float32 pixels and int64 tokens."""
    turns = results.turns["loader"]
    ours = sum(t.known["num_bytes"] for t in turns) / sum(t.num_images for t in turns)
    theirs = 3 * 4 * setting.image_size**2 + 8 * setting.loader_config().context_length
    return {"ours": ours, "open_clip": theirs}


def _own_loader(results: Results) -> dict[str, Any]:
    """The stages of the whole loader over all counted turns."""
    turns = results.turns["loader"]
    names = turns[0].known["busy_s"]
    return {
        "bottleneck": turns[-1].known["bottleneck"],
        "stages": {
            name: {
                key: sum(t.known[key][name] for t in turns)
                for key in ("num_samples", "stage_bytes", "busy_s", "input_wait_s", "output_wait_s")
            }
            for name in names
        },
    }
