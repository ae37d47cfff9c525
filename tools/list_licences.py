"""Write the licences of the pinned packages, and of all that they need, as they declare them.

    python tools/list_licences.py --out docs/licences.md

What is listed is what is installed: run it in an environment made with constraints.txt.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro

from pipeline.durable import write_text

_CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
_MOST_CHARACTERS = 60
_CLASSIFIER = "License :: "
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """List the licences of the pinned packages and of all that they need."""

    out: Path = Path("docs/licences.md")
    """The page."""
    constraints: Path = _CONSTRAINTS
    """File of the pinned packages."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, object]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    pinned = [
        match[0]
        for line in arguments.constraints.read_text("utf-8").splitlines()
        if (match := _NAME.match(line))
    ]
    rows, missing = licences(pinned)
    write_text(arguments.out, page(rows, missing))
    unknown = [name for name, _, licence in rows if not licence]
    print(f"{len(rows)} packages, {len(unknown)} of no declared licence, {len(missing)} missing")
    result = {"out": str(arguments.out), "packages": len(rows), "unknown": unknown}
    return {**result, "missing": missing}


def licences(pinned: list[str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Name, version and licence of the packages and of what they need, and those not installed.

    Args:
        pinned: names of packages; extras are not followed.
    """
    rows: dict[str, tuple[str, str, str]] = {}
    missing: list[str] = []
    waiting = list(pinned)
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in rows or name in missing:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            # What is needed only elsewhere (another system, another Python) is not installed.
            if name in pinned:
                missing.append(name)
            continue
        rows[key] = (found.metadata["Name"], found.version, licence_of(found.metadata))
        needs = (each for each in found.requires or () if "extra ==" not in each)
        waiting += [match[0] for each in needs if (match := _NAME.match(each))]
    return [rows[key] for key in sorted(rows)], sorted(missing)


def licence_of(about: metadata.PackageMetadata) -> str:
    """The licence that a package declares: SPDX expression, classifiers, or free text."""
    values = about.json
    if expression := values.get("license_expression"):
        return str(expression)
    classified = [
        each.rpartition(" :: ")[2]
        for each in values.get("classifier", [])
        if each.startswith(_CLASSIFIER)
    ]
    if classified:
        return ", ".join(classified)
    text = " ".join(str(values.get("license", "")).split())
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


def page(rows: list[tuple[str, str, str]], missing: list[str]) -> str:
    """The list as Markdown."""
    head = (
        "# Licences\n\nTessera itself is Apache-2.0. These are the packages of constraints.txt and "
        "what they need, with the\nlicence that each declares. `python tools/list_licences.py` "
        "writes this page.\n\n| package | version | licence |\n| --- | --- | --- |\n"
    )
    table = "".join(f"| {' | '.join(row[:2])} | {row[2] or 'not declared'} |\n" for row in rows)
    return head + table + (f"\nNot installed here: {', '.join(missing)}.\n" if missing else "")


if __name__ == "__main__":
    sys.exit(main())
