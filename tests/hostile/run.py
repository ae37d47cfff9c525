"""Feed damaged files to every parser, and write down what became of them.

Usage: `python tests/hostile/run.py --inputs 10000 --out docs/results/hostile-input-cpu`. It writes
the record (.json) and the table (.md). The same seed gives the same inputs. Exit status 0 without a
crash, 1 with one, 2 for wrong use.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.hostile import pictures, stores, texts, web  # noqa: E402
from tests.hostile.harness import Limits, Outcome, Parser, run_parser  # noqa: E402


def parsers() -> list[Parser]:
    """Every way in."""
    return [parser for module in (pictures, stores, texts, web) for parser in module.parsers()]


def main(words: Sequence[str]) -> int:
    """Run; returns the exit status."""
    arguments = _arguments(words)
    chosen = [parser for parser in parsers() if arguments.only in parser.name]
    if not chosen:
        print(f"no parser has {arguments.only!r} in its name", file=sys.stderr)
        return 2
    limits = Limits()
    outcomes: list[Outcome] = []
    for parser in chosen:
        count = max(1, arguments.inputs // parser.divisor)
        outcomes.append(run_parser(parser, count, arguments.seed, limits))
        print(row(outcomes[-1]), flush=True)
        for crash in outcomes[-1].crashes:
            print(f"  input {crash['number']}: {crash['what']}", file=sys.stderr)
        _write(arguments, limits, outcomes)
    crashes = sum(len(outcome.crashes) for outcome in outcomes)
    inputs = sum(outcome.num_inputs for outcome in outcomes)
    print(json.dumps({"inputs": inputs, "crashes": crashes, "seed": arguments.seed}))
    return 1 if crashes else 0


def _write(arguments: argparse.Namespace, limits: Limits, outcomes: Sequence[Outcome]) -> None:
    """Record and table of what is done so far; a run that is ended early keeps them."""
    if not arguments.out:
        return
    record = {
        "inputs": sum(outcome.num_inputs for outcome in outcomes),
        "crashes": sum(len(outcome.crashes) for outcome in outcomes),
        "seed": arguments.seed,
        "limits": asdict(limits),
        "parsers": [asdict(outcome) for outcome in outcomes],
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(record) + "\n", "utf-8")
    arguments.out.with_suffix(".md").write_text(page(record, outcomes), "utf-8")


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table in Markdown."""
    head = ("parser", "inputs", "read", "refused", "crashes", "slowest", "peak memory")
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)])]
    return "\n".join(f"| {line} |" for line in [*lines, *map(row, outcomes)])


def row(outcome: Outcome) -> str:
    """One line of the table."""
    cells = (
        outcome.parser,
        f"{outcome.num_inputs:,}",
        f"{outcome.accepted:,}",
        f"{outcome.refused:,}",
        f"{len(outcome.crashes)}",
        f"{outcome.slowest_s:.2f} s",
        f"+{outcome.peak_mib:.0f} MiB",
    )
    return " | ".join(cells)


def page(record: dict, outcomes: Sequence[Outcome]) -> str:
    """The table with what it was made with."""
    limits = record["limits"]
    command = "python tests/hostile/run.py --inputs 10000 --out docs/results/hostile-input-cpu"
    return (
        f"# Hostile input\n\n`{command}`: {record['inputs']:,} damaged files, "
        f"{record['crashes']} crashes (seed {record['seed']}). Every input had "
        f"{limits['seconds']:.0f} s and {limits['memory_mib']:,} MiB of address space on top of "
        "the prepared process. Peak memory is the growth of resident memory over all inputs of a "
        f"parser. Times were taken on a shared machine.\n\n{table(outcomes)}\n"
    )


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--inputs", type=int, default=10_000, help="of each picture parser")
    reader.add_argument("--seed", type=int, default=1)
    reader.add_argument("--only", default="", help="parsers with this in their name")
    reader.add_argument("--out", type=Path, help="record and table, without a suffix")
    return reader.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
