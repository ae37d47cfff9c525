"""The figures of a run as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tessera.report.benchmark import NAMES
from tessera.tools.benchmarks import ladder


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The tables, a line each."""
    yield (
        f"{result['data']}: {result['num_samples']:,} samples, {result['images_per_side']:,} images"
        f" a side, {result['image_size']} px, crop scale {result['crop_scale'][0]:g} to "
        f"{result['crop_scale'][1]:g}, mask {result['mask']} {result['mask_ratio']:g}"
    )
    for kind, title in (("one_core", "one core"), ("all_cores", f"{result['threads']} threads")):
        yield ""
        yield f"Ladder on {title}, a step at a time (medians)"
        yield from ladder.lines([ladder.Rung(**rung) for rung in result["ladder"][kind]])
    yield ""
    yield f"{'':42} {'images/s (min to max)':>26} {'CPU ms':>8} {'MiB':>7}"
    for name, title in NAMES.items():
        if name in result["sides"]:
            yield _side(title, result["sides"][name])
    yield ""
    yield "Ours over theirs, median (min to max); by wall clock and by CPU time"
    for name, ratio in result["ratios"].items():
        text = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        yield f"  {name.replace('_', ' '):52} {text}"
    yield from _rest(result)


def _side(title: str, side: dict[str, Any]) -> str:
    rate = side["images_per_s"]
    text = f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})"
    cpu_ms = side["cpu_ms_per_image"]["median"]
    return f"{title:42} {text:>26} {cpu_ms:8.2f} {side['memory_bytes'] / 2**20:7,.0f}"


def _rest(result: dict[str, Any]) -> Iterator[str]:
    yield ""
    if result["limit"]:
        yield f"full decode is {result['limit']['library']}'s, the fastest installed"
    if result["gpu_limit"]:
        yield f"our loader runs at {result['gpu_limit']['share_of_our_loader']:.0%} of nvJPEG alone"
    yield f"our loader's bottleneck: {result['loader']['bottleneck']}"
    own, theirs = (result["bytes_per_image"][name] for name in ("ours", "open_clip"))
    yield f"bytes to the model an image: {own:,.0f}; open_clip {theirs:,.0f} ({theirs / own:.1f}x)"
    for name, value in result["storage"].items():
        shown = f"{value:,.2f}" if isinstance(value, float) else value
        yield f"{name.replace('_', ' '):32} {shown}"
    for entry in result["sweep"]:
        head = f"sweep {entry['setting']} {entry['value']}"
        yield f"{head:32} failed: {entry['failed']}" if "failed" in entry else _side(head, entry)
    for name, reason in result["left_out"].items():
        yield f"left out: {NAMES[name]}: {reason}"
