"""What does each mask strategy cost, in time and memory, against N, B, anchors and the N x N form?

    python tools/benchmark_masks.py --batch-sizes 64,256 --num-patches 196,784

Patches are of drawn scenes with a camera's grain. The strategies take turns in every repeat, after
one round of warm-up. Time is the processor time of the calling thread on a CPU (so that other
programs count less; torch is held to one thread) and of the device on CUDA; the median and the
least of the repeats are told. Memory is what a call allocates at most, beyond the patches
themselves; the compiled similarity's own buffers, tens of KiB a thread, are not counted.
`cluster, N x N` forms all pairs of patches of an image, as the released code does, and otherwise
goes the same way.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
import torch
import tyro
from torch import Tensor

from tessera.pipeline.masking import (
    BlockMask,
    ClusterMask,
    EdgeAwareMask,
    GridMask,
    KMeansMask,
    MaskStrategy,
    PatchEmbedding,
    RandomMask,
)
from tessera.pipeline.patches import normalise, patchify
from tessera.recipes import demo_scenes

_DRAWN = 32
"""Pictures of a batch that are drawn; the others repeat them with other grain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Measure the mask strategies."""

    batch_sizes: str = "64"
    """Images in a batch, B; several with commas."""
    num_patches: str = "196"
    """Patches of an image, N, square numbers; several with commas."""
    anchor_ratios: str = "0.03,0.1"
    """Shares of patches drawn as anchors; several with commas."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    repeats: int = 10
    """Timed calls of each strategy."""
    device: str = "cpu"
    """cpu or cuda."""
    slow: bool = False
    """Also measure k-means and the embedding's similarity, milliseconds an image on a CPU."""


@dataclass(frozen=True)
class AllPairsMask(ClusterMask):
    """Cluster masking over all N x N similarities, of which the anchors' rows are then taken."""

    def similarity(self, patches: Tensor, noise: Tensor) -> Tensor:
        """[B, N], by way of [B, N, N]."""
        values = normalise(patches)
        values = values - values.mean(dim=2, keepdim=True)
        units = torch.nn.functional.normalize(values, dim=2)
        pairs = torch.bmm(units, units.mT)
        rows = self.draw_anchors(patches, noise)[:, :, None].expand(-1, -1, pairs.shape[2])
        return pairs.gather(1, rows).amax(dim=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    rows = measure(arguments)
    print(f"{'strategy':24}{'B':>6}{'N':>6}{'A':>5}{'us/image':>11}{'least':>9}{'KiB/image':>11}")
    for row in rows:
        print(
            f"{row['strategy']:24}{row['batch_size']:6}{row['num_patches']:6}{row['anchors']:5}"
            f"{row['us_per_image']:11.1f}{row['us_per_image_least']:9.1f}"
            f"{row['bytes_per_image'] / 1024:11.1f}"
        )
    environment = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "threads": 1,
    }
    return {"masks": rows, "environment": environment}


def measure(arguments: Arguments) -> list[dict[str, Any]]:
    """One row for each strategy, batch size, number of patches and number of anchors.

    Raises:
        ValueError: an argument is out of range.
    """
    torch.set_num_threads(1)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device: leave out --device cuda")
    if arguments.repeats < 1 or arguments.patch_size < 1:
        raise ValueError("--repeats and --patch-size must be at least 1")
    ratios = [float(ratio) for ratio in arguments.anchor_ratios.split(",")]
    rows = []
    for batch_size in map(int, arguments.batch_sizes.split(",")):
        for num_patches in map(int, arguments.num_patches.split(",")):
            patches = draw_patches(batch_size, num_patches, arguments.patch_size)
            patches = patches.to(arguments.device)
            masks = strategies(ratios, patches.shape[2], slow=arguments.slow)
            rows += compare(masks, patches, arguments.repeats)
    return rows


def strategies(
    ratios: list[float], num_values: int, *, slow: bool
) -> dict[str, tuple[MaskStrategy, float]]:
    """What is measured: the strategy, and its share of anchors (0 for none)."""
    masks: dict[str, tuple[MaskStrategy, float]] = {
        "random": (RandomMask(0.5), 0),
        "grid": (GridMask(0.75), 0),
        "block": (BlockMask(0.75), 0),
    }
    for ratio in ratios:
        named = {
            "budget": ClusterMask(ratio),
            "topk": ClusterMask(ratio, mode="topk"),
            "threshold": ClusterMask(ratio, threshold=0.5),
            "fill": ClusterMask(ratio, mode="fill"),
            "N x N": AllPairsMask(ratio),
        }
        masks |= {f"cluster, {name} @{ratio}": (mask, ratio) for name, mask in named.items()}
        masks[f"edge_aware @{ratio}"] = (EdgeAwareMask(ratio), ratio)
        if slow:
            embedding = PatchEmbedding(num_steps=1)
            embedding.update(torch.randn(num_values, num_values), 1)
            mixed = ClusterMask(ratio, embedding=embedding)
            masks[f"cluster, embedding @{ratio}"] = (mixed, ratio)
    return masks | ({"kmeans": (KMeansMask(), 0)} if slow else {})


def draw_patches(batch_size: int, num_patches: int, patch_size: int) -> Tensor:
    """The demo's scenes with a camera's grain, as patches [B, N, D] uint8.

    Raises:
        ValueError: num_patches is no square number, or the batch is empty.
    """
    side = isqrt(num_patches)
    if side * side != num_patches or batch_size < 1:
        raise ValueError("--num-patches takes square numbers, --batch-sizes 1 or more")
    size = side * patch_size
    pictures = []
    for number in range(min(batch_size, _DRAWN)):
        rng = demo_scenes.rng_of(0, "train", number, "mask")
        picture = demo_scenes.draw(rng, demo_scenes.describe(0, "train", number), (size, size))
        pictures.append(torch.from_numpy(np.array(picture)))
    grain = 4 * torch.randn(batch_size, size, size, 3, generator=torch.Generator().manual_seed(0))
    chosen = torch.arange(batch_size) % len(pictures)
    pixels = torch.stack(pictures)[chosen] + grain
    return patchify(pixels.clamp(0, 255).byte(), patch_size)


def compare(
    masks: dict[str, tuple[MaskStrategy, float]], patches: Tensor, repeats: int
) -> list[dict[str, Any]]:
    """Time all strategies on the same patches, in turns, and then their memory."""
    noise = torch.rand(patches.shape[:2], generator=torch.Generator().manual_seed(1))
    noise = noise.to(patches.device)
    seconds: dict[str, list[float]] = {name: [] for name in masks}
    for repeat in range(repeats + 1):
        for name, (mask, _) in masks.items():
            spent = _seconds(lambda mask=mask: mask.visible(patches, noise), patches.is_cuda)
            if repeat:
                seconds[name].append(spent)
    rows = []
    for name, (mask, ratio) in masks.items():
        num_anchors = ClusterMask(ratio).num_anchors(patches.shape[1]) if ratio else 0
        peak = _peak_bytes(lambda mask=mask: mask.visible(patches, noise), patches.is_cuda)
        rows.append(
            {
                "strategy": name,
                "batch_size": len(patches),
                "num_patches": patches.shape[1],
                "anchors": num_anchors,
                "us_per_image": statistics.median(seconds[name]) / len(patches) * 1e6,
                "us_per_image_least": min(seconds[name]) / len(patches) * 1e6,
                "bytes_per_image": peak / len(patches),
            }
        )
    return rows


def _seconds(call: Callable[[], object], cuda: bool) -> float:
    if not cuda:
        start = time.thread_time()
        call()
        return time.thread_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _peak_bytes(call: Callable[[], object], cuda: bool) -> int:
    """Most bytes that torch held at once during the call, beyond what it held before."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    held = most = 0
    for event in profile.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            most = max(most, held)
    return most


if __name__ == "__main__":
    sys.exit(main())
