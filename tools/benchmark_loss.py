"""What does a loss cost in time and memory, as a whole and in tiles, as the batch grows?

    python tools/benchmark_loss.py --batch-sizes 4096,16384 --tile-sizes 1024,2048
    python tools/benchmark_loss.py --kind fastclip_v3

One process, forward and backward, float32. The forms take turns in every repeat after a round of
warm-up on a small batch; the medians are told, with the least. Memory is the most that a call
needs beyond the features: of the process on a CPU (Linux), of torch's allocator on CUDA. The
largest difference of a gradient from the whole form's is told over the largest gradient. Sizes
above --whole-up-to are measured in tiles alone; the gradient of 64 images and 64 texts is compared
with float64 for clip, and not compared for the other kinds. Prints a table and, last, one JSON
line.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import torch
import tyro
from torch import Tensor

from tessera.model.losses import ContrastiveLoss, LossConfig, build_loss
from tessera.model.losses.config import LossKind
from tessera.tools.benchmarks.peak_memory import forget_peak, peak_memory

_SCALE, _BIAS = 50.0, -10.0
_NUM_COMPARED = 64
_ROWS_AT_ONCE = 512
Gradients = tuple[Tensor, Tensor]
"""To the features of images and texts, each [B, d]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Measure a contrastive loss."""

    kind: LossKind = "clip"
    """Which loss."""
    batch_sizes: str = "4096,16384"
    """Image-text pairs, B; several with commas."""
    tile_sizes: str = "2048"
    """Rows and columns of a tile; several with commas."""
    whole_up_to: int = 16384
    """Largest batch whose similarity matrix is also held as a whole, pairs."""
    dim: int = 512
    """Length of a feature, d."""
    repeats: int = 3
    """Timed calls of each form."""
    threads: int = 1
    """Threads of torch on a CPU."""
    device: str = "cpu"
    """cpu or cuda."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    rows = measure(arguments)
    print(
        f"{'pairs':>7} {'form':12}{'seconds':>9}{'least':>9}{'MiB':>9}{'bytes/pair':>12}"
        f"{'error':>10}"
    )
    for row in rows:
        print(
            f"{row['pairs']:7} {row['form']:12}{row['seconds']:9.3f}{row['seconds_least']:9.3f}"
            f"{row['bytes'] / 2**20:9.1f}{row['bytes'] / row['pairs']:12.0f}"
            + (f"{row['gradient_error']:10.1e}" if row["compared_with"] else f"{'-':>10}")
        )
    environment = {
        "kind": arguments.kind,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "threads": arguments.threads,
        "dim": arguments.dim,
    }
    return {"loss": rows, "environment": environment}


def measure(arguments: Arguments) -> list[dict[str, Any]]:
    """One row for each batch size and form.

    Raises:
        ValueError: an argument is out of range.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device: leave out --device cuda")
    if arguments.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise ValueError("memory is measured on Linux or CUDA alone")
    sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    tiles = [int(size) for size in arguments.tile_sizes.split(",")]
    if min(arguments.repeats, arguments.threads, arguments.dim, *sizes, *tiles) < 1:
        raise ValueError("sizes, --repeats and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    rows = []
    for size in sizes:
        forms = {f"tile {tile}": tile for tile in tiles}
        if size <= arguments.whole_up_to:
            forms = {"whole": 0} | forms
        losses = {
            name: build_loss(
                LossConfig(kind=arguments.kind, tile_size=tile), num_samples=size, steps_per_pass=1
            )
            for name, tile in forms.items()
        }
        rows += compare(losses, size, arguments)
    return rows


def compare(
    losses: dict[str, ContrastiveLoss], size: int, arguments: Arguments
) -> list[dict[str, Any]]:
    """Call all forms on the same features, in turns, the order turned round every time."""
    for loss in losses.values():
        loss.to(arguments.device)
        _call(loss, draw_features(64, arguments.dim, arguments.device))
    features = draw_features(size, arguments.dim, arguments.device)
    calls: dict[str, list[tuple[float, int]]] = {name: [] for name in losses}
    gradients: dict[str, Gradients] = {}
    for repeat in range(arguments.repeats):
        for name in list(losses)[:: -1 if repeat % 2 else 1]:
            seconds, peak, gradients[name] = _call(losses[name], features)
            calls[name].append((seconds, peak))
    compared, wanted, compared_with = slice(None), gradients.get("whole"), "whole"
    if wanted is None and arguments.kind == "clip":
        compared, compared_with = torch.arange(0, size, max(1, size // _NUM_COMPARED)), "float64"
        images, texts = features
        wanted = exact_gradient(images, texts, compared), exact_gradient(texts, images, compared)
    rows = []
    for name, measured in calls.items():
        seconds = [each for each, _ in measured]
        rows.append(
            {
                "pairs": size,
                "form": name,
                "seconds": statistics.median(seconds),
                "seconds_least": min(seconds),
                "bytes": max(peak for _, peak in measured),
                "gradient_error": wanted
                and max(
                    float((got[compared] - want).abs().max() / want.abs().max())
                    for got, want in zip(gradients[name], wanted, strict=True)
                ),
                "compared_with": wanted and compared_with,
            }
        )
    return rows


@torch.no_grad()
def exact_gradient(images: Tensor, texts: Tensor, rows: Tensor) -> Tensor:
    """Gradient of CLIP's loss to some images, in float64, by its closed form.

    The loss is symmetric: with texts and images in each other's place it is that to the texts.

    Args:
        images: [B, d].
        texts: [B, d].
        rows: [R] which images.

    Returns:
        [R, d].
    """
    images, texts = images.double(), texts.double()
    over_images = torch.full((len(texts),), -torch.inf, dtype=torch.double, device=texts.device)
    for part in images.split(_ROWS_AT_ONCE):
        over_images = torch.logaddexp(over_images, (_SCALE * part @ texts.T).logsumexp(0))
    logits = _SCALE * images[rows] @ texts.T
    weights = logits.softmax(1) + (logits - over_images).exp()
    return _SCALE / (2 * len(texts)) * (weights @ texts - 2 * texts[rows])


def draw_features(size: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    """Unit features [size, dim] whose pairs resemble each other as in training."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(size, dim, generator=draw)
    texts = images + 4 * torch.randn(size, dim, generator=draw)
    images, texts = (torch.nn.functional.normalize(each, dim=1) for each in (images, texts))
    return images.to(device).requires_grad_(), texts.to(device).requires_grad_()


def _call(loss: ContrastiveLoss, features: tuple[Tensor, Tensor]) -> tuple[float, int, Gradients]:
    """Seconds and most bytes of forward and backward, and the gradients."""
    device = features[0].device
    scale, bias = (torch.tensor(each, device=device) for each in (_SCALE, _BIAS))
    ids = torch.arange(len(features[0]), device=device)
    before = forget_peak(device.type)
    start = time.perf_counter()
    value = loss(*features, scale, logit_bias=bias, sample_ids=ids)
    images, texts = torch.autograd.grad(value, features)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, peak_memory(device.type) - before, (images, texts)


if __name__ == "__main__":
    sys.exit(main())
