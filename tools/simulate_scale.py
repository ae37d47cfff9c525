"""Does the order hold on thousands of ranks, and what would limit a run of that size?

    python tools/simulate_scale.py
    python tools/simulate_scale.py --samples 12400000 --ranks 1 8 64 --bytes-per-sample 30000

Two parts. The first asks the code that training runs, without a GPU, for the batches of every rank:
is each sample served once in a pass, do the ranks of any world size make up the same global batch,
does a resumed run on another number of ranks go on with it, how evenly are bytes spread, what does
the order cost. The second computes from measured and assumed figures which resource a run would
wait for; --help says where each figure comes from.

The exit status is 1 if a check fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
import tyro
from tqdm import tqdm

from tools.simulation.costs import Assumptions, Cost, cost
from tools.simulation.order_checks import (
    OrderKind,
    OrderSize,
    check_once,
    check_ranks,
    check_window_reads,
    measure_cost,
)

_NUM_SIZES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """What to simulate."""

    samples: tuple[int, ...] = (12_400_000, 400_000_000, 2_000_000_000)
    """Sizes of sets, samples."""
    ranks: tuple[int, ...] = (1, 8, 64, 512, 4096)
    """World sizes whose batches are checked."""
    gpus: tuple[int, ...] = (1, 8, 64, 512)
    """World sizes of the cost table."""
    orders: tuple[OrderKind, ...] = ("global", "window")
    """Which orders."""
    pairs_per_rank: int = 64
    """Pairs of a rank in a step of the checks."""
    samples_per_shard: int = 10_000
    """Samples of a shard."""
    window_shards: int = 16
    """window: shards that are mixed with each other."""
    bytes_spread: float = 0.6
    """Standard deviation of the logarithm of picture sizes, for the balance over ranks."""
    seed: int = 0
    """Of the order and of what is drawn."""
    costs: Assumptions = field(default_factory=Assumptions)
    """Figures that the cost table is computed from."""

    def __post_init__(self) -> None:
        numbers = (*self.samples, *self.ranks, *self.gpus, self.pairs_per_rank)
        if min(*numbers, self.samples_per_shard, self.window_shards) < 1:
            raise ValueError("samples, ranks, gpus and sizes must be at least 1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any] | program.Ended:
    arguments = tyro.cli(
        Arguments,
        args=words,
        description=program.describe(__doc__),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    checks = [
        check(arguments, num_samples, kind)
        for num_samples in arguments.samples
        for kind in arguments.orders
    ]
    table = [
        cost(gpus, samples, arguments.costs)
        for samples in arguments.samples
        for gpus in arguments.gpus
    ]
    print("\n".join([*check_lines(checks), "", *cost_lines(table, arguments.costs)]))
    passed = all(result["passed"] for result in checks)
    rows = [{**asdict(row), "limit": row.limit} for row in table]
    result = {"passed": passed, "checks": checks, "costs": rows} | _given(arguments)
    return result if passed else program.Ended(result=result, status=program.FAILED)


def check(arguments: Arguments, num_samples: int, kind: OrderKind) -> dict[str, Any]:
    """All checks of one set in one order, as plain values."""
    size = OrderSize(
        num_samples=num_samples,
        samples_per_shard=arguments.samples_per_shard,
        kind=kind,
        window_shards=arguments.window_shards,
        seed=arguments.seed,
    )
    rng = np.random.default_rng(arguments.seed)
    sizes = arguments.costs.bytes_per_sample * rng.lognormal(0, arguments.bytes_spread, _NUM_SIZES)
    largest = arguments.pairs_per_rank * max(arguments.ranks)
    ranks, reads = [], []
    once = check_once(size)
    with tqdm(total=len(arguments.ranks), desc=f"{num_samples:,} {kind}", leave=False) as bar:
        for world_size in arguments.ranks:
            batch_size = world_size * arguments.pairs_per_rank
            ranks.append(check_ranks(size, world_size, batch_size, sizes))
            if kind == "window":
                num_caches = -(-world_size // arguments.costs.gpus_per_node)
                reads.append(check_window_reads(size, num_caches, batch_size))
            bar.update()
    spent = measure_cost(size, largest)
    passed = not once.repeated and not any(
        result.differing or result.differing_after_resume for result in ranks
    )
    return {
        "num_samples": num_samples,
        "order": kind,
        "passed": passed,
        "once": asdict(once),
        "ranks": [asdict(result) for result in ranks],
        "window_reads": [asdict(result) for result in reads],
        "cost": asdict(spent),
    }


def check_lines(checks: list[dict[str, Any]]) -> Iterator[str]:
    """The checks as tables."""
    yield "Each sample once in a pass"
    yield f"{'samples':>15} {'order':7} {'looked at':>13} {'twice':>6} {'if drawn at random':>19}"
    for found in checks:
        once = found["once"]
        share = "whole pass" if once["whole_pass"] else f"{once['places']:,}"
        yield (
            f"{found['num_samples']:15,} {found['order']:7} {share:>13} {once['repeated']:6} "
            f"{once['expected_if_random']:19,.0f}"
        )
    yield ""
    yield "The same global batch on any number of ranks, and after a resume on half as many"
    yield (
        f"{'samples':>15} {'order':7} {'ranks':>6} {'batch':>8} {'differ':>7} {'resumed':>8} "
        f"{'bytes max/mean':>15} {'shards a rank':>14}"
    )
    for found in checks:
        for row in found["ranks"]:
            yield (
                f"{found['num_samples']:15,} {found['order']:7} {row['world_size']:6} "
                f"{row['batch_size']:8,} {row['differing']:3}/{row['steps']:<3} "
                f"{row['differing_after_resume']:4}/{row['steps']:<3} "
                f"{row['bytes_max_over_mean']:15.2f} {row['shards_per_rank']:14.1f}"
            )
    yield ""
    yield "Window order: shards that each machine fetches of one window"
    yield f"{'samples':>15} {'machines':>9} {'batch':>8} {'shards each':>12} {'times read':>11}"
    for found in checks:
        for row in found["window_reads"]:
            yield (
                f"{found['num_samples']:15,} {row['num_caches']:9} {row['batch_size']:8,} "
                f"{row['shards_per_cache']:12.1f} {row['times_read']:11.2f}"
            )
    yield ""
    yield "What the order costs each rank"
    yield (
        f"{'samples':>15} {'order':7} {'batch':>8} {'open s':>8} {'seek ms':>8} {'step ms':>8} "
        f"{'held KiB':>9}"
    )
    for found in checks:
        row = found["cost"]
        yield (
            f"{found['num_samples']:15,} {found['order']:7} {row['batch_size']:8,} "
            f"{row['open_s']:8.3f} {row['seek_ms']:8.2f} {row['step_ms']:8.2f} "
            f"{row['held_bytes'] / 1024:9,.0f}"
        )


def cost_lines(table: list[Cost], given: Assumptions) -> Iterator[str]:
    """The cost table. Shares are of a step's time; above 100% the step waits."""
    yield (
        f"What a step would wait for, at {given.pairs_per_gpu_s:,.0f} pairs/s and "
        f"{given.pairs_per_gpu:,} pairs a GPU (assumed; see --help)"
    )
    yield (
        f"{'samples':>15} {'GPUs':>5} {'batch':>9} {'pass h':>8} {'decode':>7} {'reads':>7} "
        f"{'storage':>8} {'grads':>7} {'feats':>7} {'loss':>7} {'full loss':>10} {'host':>9} "
        f"{'index':>8}  limit"
    )
    for row in table:
        yield (
            f"{row.num_samples:15,.0f} {row.num_gpus:5} {row.batch_size:9,} {row.pass_hours:8.2f} "
            f"{row.decode_share:7.0%} {row.node_read_share:7.0%} {row.storage_share:8.0%} "
            f"{row.gradient_share:7.1%} {row.feature_share:7.1%} {row.loss_share:7.2%} "
            f"{row.loss_full_gib:6.2f} GiB {row.host_gib_per_node:5.1f} GiB "
            f"{row.index_gib_per_node:4.0f} GiB  {row.limit}"
        )


def _given(arguments: Arguments) -> dict[str, Any]:
    return {"arguments": asdict(arguments), "python": sys.version.split()[0]}


if __name__ == "__main__":
    sys.exit(main())
