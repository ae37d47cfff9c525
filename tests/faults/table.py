"""Injections summed up by fault."""

from __future__ import annotations

import math
from statistics import median
from typing import Any


def summary(injections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each fault, in the order of their first injection."""
    rows = []
    for name in dict.fromkeys(each["fault"] for each in injections):
        own = [each for each in injections if each["fault"] == name and not each["skipped"]]
        good = [each for each in own if not _problem(each)]
        rows.append(
            {
                "fault": name,
                "injected": sum(each["times"] for each in own),
                "survived": sum(each["times"] for each in good),
                "lost": _lost([each["lost"] for each in own]),
                "replaced": sum(each["replaced"] for each in good),
                "ended_s": [each["ended_s"] for each in good if not math.isnan(each["ended_s"])],
                "back_s": [each["back_s"] for each in good if not math.isnan(each["back_s"])],
                "said": next((each["said"] for each in good if each["said"]), ""),
            }
        )
    return rows


def table(record: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """The page: what was injected, what became of it, and what was not survived."""
    injections = record["injections"]
    lines = [
        "# Injected faults",
        "",
        f"`{record['command']}`, {record['environment']['device']}, shared with other work.",
        "",
        "| fault | injected | survived | samples lost | replaced, named | s until ended | "
        "s until back |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['fault']} | {row['injected']} | {row['survived']} | {row['lost']} | "
        f"{row['replaced']} | {_seconds(row['ended_s'])} | {_seconds(row['back_s'])} |"
        for row in rows
    ]
    injected, survived = (sum(row[key] for row in rows) for key in ("injected", "survived"))
    lost = _lost([each["lost"] for each in injections if not each["skipped"]])
    lines += [f"| **all** | **{injected}** | **{survived}** | **{lost}** | | | |", ""]
    lines += ["Seconds: median (most) of the survived."]
    said = [row for row in rows if row["said"]]
    if said:
        lines += ["", "What the jobs said, one example each:", ""]
        lines += [f"- {row['fault']}: `{row['said'][:300]}`" for row in said]
    failed = [each for each in injections if _problem(each)]
    if failed:
        lines += ["", "Not survived:", ""]
        lines += [f"- {e['fault']}, seed {e['seed']}: {_problem(e)[:400]!r}" for e in failed]
    skipped = {each["fault"]: each["skipped"] for each in injections if each["skipped"]}
    if skipped:
        lines += ["", "Not injected:", ""]
        lines += [f"- {fault}: {why}" for fault, why in skipped.items()]
    return lines


def _lost(counts: list[int | None]) -> int | str:
    """The sum; samples of a job that came to no end could not be counted."""
    known = [count for count in counts if count is not None]
    if len(known) == len(counts):
        return sum(known)
    return f"{sum(known)} and unknown" if any(known) else "unknown"


def _problem(injection: dict[str, Any]) -> str:
    """What did not hold after an injection; empty if it was survived with every sample."""
    lost = injection["lost"]
    said = [injection["problem"], f"{lost} samples lost or served twice" if lost else ""]
    return "; ".join(filter(None, said))


def _seconds(values: list[float]) -> str:
    return f"{median(values):.1f} ({max(values):.1f})" if values else "-"
