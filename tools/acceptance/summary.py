"""What a visit found, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.acceptance.budgets import Records, judge
from tools.acceptance.running import Outcome


def summarise(outcomes: Sequence[Outcome], *, dry: bool) -> str:
    """The page.

    Args:
        outcomes: of all steps that were asked for.
        dry: whether this was the small form on a CPU, whose figures mean nothing.
    """
    return "\n".join(_lines(outcomes, dry)) + "\n"


def _lines(outcomes: Sequence[Outcome], dry: bool) -> Iterator[str]:
    records = records_of(outcomes)
    yield "# GPU acceptance" + (", dry run" if dry else "")
    yield ""
    if dry:
        yield "Every command was tried at its smallest size on a CPU. The figures mean nothing."
        yield ""
    if "machine" in records:
        yield from _machine(records["machine"])
        yield ""
    yield "| step | answers | ended | seconds |"
    yield "|---|---|---|---|"
    for outcome in outcomes:
        ended = outcome.status + (f": {_cell(outcome.reason)}" if outcome.reason else "")
        yield f"| `{outcome.name}` | {outcome.question} | {ended} | {outcome.seconds:.0f} |"
    if not dry:
        yield ""
        yield from _budgets(records)
    for name, record in records.items():
        if "ratios" in record and name.startswith("step-"):
            yield from _step(record)
    if "profile" in records:
        yield from _profile(records["profile"])
    yield ""
    yield "Commands, each of which can be repeated alone in the checkout (SCRATCH: any folder):"
    yield ""
    for outcome in outcomes:
        yield f"    {outcome.command}"


def records_of(outcomes: Sequence[Outcome]) -> Records:
    """The records of the steps that were done."""
    return {found.name: found.record for found in outcomes if found.status == "done"}


def _machine(record: Mapping[str, Any]) -> Iterator[str]:
    yield "- " + "\n- ".join(f"{name}: {value}" for name, value in record.items())


def _budgets(records: Records) -> Iterator[str]:
    yield "| budget | promised | measured | |"
    yield "|---|---|---|---|"
    for verdict in judge(records):
        value = "" if verdict.value is None else f"{verdict.value:,.2f}"
        yield f"| {verdict.budget.what} | {verdict.budget.words()} | {value} | {verdict.word} |"


def _step(record: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"## Training step, {record['model']}, batch {record['batch_size']}"
    yield ""
    yield "| side | pairs/s | GiB | GFLOP a pair | % of the matrix rate |"
    yield "|---|---|---|---|---|"
    for name, side in record["sides"].items():
        rate = side["pairs_per_s"]
        yield (
            f"| {name} | {rate['median']:,.1f} ({rate['min']:,.1f} to {rate['max']:,.1f}) "
            f"| {side['peak_memory_bytes'] / 2**30:.2f} | {side['flops_per_pair'] / 1e9:.1f} "
            f"| {100 * side['utilisation']:.0f} |"
        )


def _profile(record: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"## Kernels of a step, {record['model']}, batch {record['batch_size']}"
    yield ""
    yield (
        f"{1e3 * record['busy_s_per_step']:.2f} ms of kernels in a step of "
        f"{1e3 * record['step_s']:.2f} ms."
    )
    yield ""
    yield "| what | % |"
    yield "|---|---|"
    for kind, share in record["share_of_busy"].items():
        yield f"| {kind} | {100 * share:.1f} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
