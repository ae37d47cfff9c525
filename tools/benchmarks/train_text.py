"""The figures of a comparison of training steps as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tessera.tools.benchmarks.train_comparison import TITLES

_ACTIVITIES = ("forward", "loss", "backward", "optimiser")


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The tables, a line each."""
    yield (
        f"{result['model']}, {result['precision']}, batch {result['batch_size']}, captions "
        f"{result['captions']} (mean {result['mean_caption_tokens']:.1f} tokens), "
        f"{result['environment']['device']}"
    )
    yield ""
    yield (
        f"{'':50} {'pairs/s (min to max)':>24} {'GiB':>6} {'GFLOP/pair':>10} {'util.':>6}"
        "  forward/loss/backward/optimiser"
    )
    for name, title in TITLES.items():
        if name in result["sides"]:
            yield _side(title, result["sides"][name])
    yield ""
    yield (
        f"util. is of {result['matrix_flops_per_s'] / 1e9:,.0f} GFLOP/s, which large matrix "
        "products reach here"
    )
    yield ""
    yield "Pairs/s of ours over theirs, median (min to max)"
    for own, others in result["ratios"].items():
        for other, ratio in others.items():
            text = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            yield f"  {own:10} over {other:18} {text}"
    for name, reason in result["left_out"].items():
        yield f"left out: {TITLES[name]}: {reason}"


def _side(title: str, side: dict[str, Any]) -> str:
    rate = side["pairs_per_s"]
    rates = f"{rate['median']:,.2f} ({rate['min']:,.2f} to {rate['max']:,.2f})"
    shares = " / ".join(f"{side['share_of_step'][name]:.0%}" for name in _ACTIVITIES)
    return (
        f"{title:50} {rates:>24} {side['peak_memory_bytes'] / 2**30:6.2f} "
        f"{side['flops_per_pair'] / 1e9:10.1f} {side['utilisation']:6.0%}  {shares}"
    )
