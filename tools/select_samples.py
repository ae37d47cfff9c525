"""Keep some rows of an index: a small file beside it, nothing copied.

    python tools/select_samples.py data/cc12m --out clean --where "aspect <= 3" "size > 4000"
    python tools/select_samples.py data/cc12m@clean --split-into train=0.99 heldout=0.01
    python tools/select_samples.py data/cc12m --list
    python tools/select_samples.py data/cc12m --renew

Afterwards `data/cc12m@train` names the selection wherever an index is named. A condition is SQL
(DuckDB's), such as "shortest >= 200 AND domain NOT IN ('a.com')", "matches(text, '(?i)dog')" or
"score IS NULL"; `--list` shows the columns. Several conditions after --where are counted
one by one.

Prints what each condition dropped. A selection that keeps nothing is wrong use.
"""

from __future__ import annotations

import resource
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
import tyro
from numpy.typing import NDArray

from tessera.pipeline.index import Index
from tessera.pipeline.index.dataset import Dataset, open_dataset
from tessera.pipeline.index.select import Chosen, Criteria, Step, choose, column_kinds
from tessera.pipeline.index.selections import (
    check_name,
    is_stale,
    list_selections,
    made_by,
    open_selection,
    provenance_of,
    remove_selection,
    write_selection,
)

_WHOLE = "only a selection that was announced as written is there"
_CRITERIA = [f.name for f in fields(Criteria)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Keep some rows of an index by an expression."""

    index: tyro.conf.Positional[str]
    """Folder of an index, or INDEX@SELECTION to choose among what a selection keeps."""
    out: str = ""
    """Name of the selection; with --split-into the parts are NAME-PART, or PART without --out."""
    criteria: Annotated[Criteria, tyro.conf.arg(name="")] = field(default_factory=Criteria)
    """What to keep."""
    heldout_share: float = 0.0
    """Short for --split-into train=1-SHARE heldout=SHARE, of which --split takes one."""
    split: Literal["", "train", "heldout"] = ""
    """The part that --heldout-share keeps."""
    list: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the selections and the columns of an index, and end."""
    renew: tyro.conf.FlagCreatePairsOff[bool] = False
    """Make all selections again whose index, or whose own base, has changed since, and end."""
    remove: str = ""
    """Remove the selection of this name, and end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(
        lambda words: _run(tyro.cli(Arguments, args=words, description=program.describe(__doc__))),
        argv,
        stopped=f"stopped; {_WHOLE}",
        failed=_WHOLE,
    )


def _run(arguments: Arguments) -> dict[str, Any]:
    dataset = open_dataset(arguments.index)
    if arguments.list:
        return _list(dataset, arguments.criteria)
    if arguments.renew:
        return _renew(dataset.index)
    if arguments.remove:
        remove_selection(dataset.index, arguments.remove)
        print(f"removed    {arguments.remove}")
        return {"index_dir": str(dataset.index.directory), "removed": arguments.remove}
    criteria, only = _with_split(arguments)
    _check_names(arguments, criteria)
    return _select(dataset, arguments, criteria, only)


def _with_split(arguments: Arguments) -> tuple[Criteria, str]:
    """The criteria with --heldout-share spelt out, and the part to keep if it is but one."""
    criteria, share = arguments.criteria, arguments.heldout_share
    if bool(share) != bool(arguments.split):
        raise ValueError("--heldout-share SHARE and --split train (or heldout) go together")
    if not share:
        return criteria, ""
    if criteria.split_into:
        raise ValueError("--split-into makes all parts, --heldout-share one: choose either")
    if not 0 < share < 1:
        raise ValueError(f"--heldout-share must lie between 0 and 1, got {share}")
    exact = Fraction(str(share))
    parts = (f"train={1 - exact}", f"heldout={exact}")
    return Criteria(**{**asdict(criteria), "split_into": parts}), arguments.split


def _check_names(arguments: Arguments, criteria: Criteria) -> None:
    if not arguments.out and (arguments.split or not criteria.split_into):
        raise ValueError("name the selection with --out NAME, or list those there are with --list")
    if arguments.out:
        check_name(arguments.out)


def _select(
    dataset: Dataset, arguments: Arguments, criteria: Criteria, only: str
) -> dict[str, Any]:
    started = time.perf_counter()
    chosen = choose(dataset, criteria)
    _print_steps(dataset, arguments, chosen)
    base = dataset.selection
    provenance = {
        "command": _command(arguments),
        "criteria": _changed(criteria),
        "base": {"name": base.name, "fingerprint": base.fingerprint} if base else None,
        "join": asdict(chosen.joined) if chosen.joined else None,
        "conditions": [_numbers(step) for step in chosen.steps],
    }
    written = []
    for part, rows in chosen.rows.items():
        if only in ("", part):
            name = arguments.out if only or not part else _part_name(arguments.out, part)
            written.append(_write(dataset, name, rows, provenance | {"part": part}))
    seconds = time.perf_counter() - started
    print(f"took       {seconds:.1f} s")
    return {
        "index_dir": str(dataset.index.directory),
        "index_fingerprint": dataset.index.fingerprint,
        "num_samples": dataset.num_samples,
        "selections": written,
        "conditions": [_numbers(step) for step in chosen.steps],
        "join": provenance["join"],
        "seconds": round(seconds, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _part_name(prefix: str, part: str) -> str:
    return f"{prefix}-{part}" if prefix else part


def _write(
    dataset: Dataset, name: str, rows: NDArray[np.int64], provenance: dict[str, Any]
) -> dict[str, Any]:
    """Store one selection, say so, and return what the summary holds of it."""
    verb = "replaced" if name in list_selections(dataset.index) else "written"
    selection = write_selection(dataset.index, name, rows, provenance)
    share = selection.num_samples / dataset.num_samples
    print(f"{verb:10} @{name}: {selection.num_samples:,} samples, {share:.2%}")
    return {
        "name": name,
        "num_samples": selection.num_samples,
        "fingerprint": selection.fingerprint,
    }


def _command(arguments: Arguments) -> list[str]:
    """The words behind the index that make this selection again."""
    options = {name: getattr(arguments, name) for name in ("out", "heldout_share", "split")}
    words = []
    for name, value in (options | _changed(arguments.criteria)).items():
        if value:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def _changed(criteria: Criteria) -> dict[str, Any]:
    default = Criteria()
    return {
        name: getattr(criteria, name)
        for name in _CRITERIA
        if getattr(criteria, name) != getattr(default, name)
    }


def _numbers(step: Step) -> dict[str, Any]:
    return {
        "condition": step.condition,
        "failing": step.num_failing,
        "missing": step.num_missing,
        "dropped": step.num_dropped,
    }


def _print_steps(dataset: Dataset, arguments: Arguments, chosen: Chosen) -> None:
    print(f"samples    {dataset.num_samples:,} in {arguments.index}")
    if chosen.joined:
        join = chosen.joined
        print(
            f"joined     {join.num_rows:,} rows to {join.num_matched:,} samples of the index, "
            f"{join.num_repeated:,} rows repeated"
        )
    for step in chosen.steps:
        print(f"dropped    {step.num_dropped:,} by {step.condition}")
        if step.num_failing != step.num_dropped:
            print(f"           {step.num_failing:,} fail it, earlier conditions' included")
        if step.num_missing:
            print(f"           {step.num_missing:,} of them because a value is missing")
        for example in step.examples:
            print(f"             {example}")


def _list(dataset: Dataset, criteria: Criteria) -> dict[str, Any]:
    index, found = dataset.index, []
    for name in list_selections(index):
        found.append(_describe(index, name))
        entry = found[-1]
        if "problem" in entry:
            print(f"{name:20} unusable: {entry['problem']}")
        else:
            print(f"{name:20} {entry['num_samples']:>12,}  {entry['made_by']}")
    if not found:
        print("no selections")
    kinds = column_kinds(dataset, criteria)
    for kind, title in (
        ("number", "numbers"),
        ("text", "texts"),
        ("hash", "hashes"),
        ("condition", "conditions"),
    ):
        names = [name for name in sorted(kinds) if kinds[name] == kind]
        if names:
            print(f"{title:11}{', '.join(names)}")
    return {"index_dir": str(index.directory), "selections": found, "columns": kinds}


def _renew(index: Index) -> dict[str, Any]:
    """Repeat the commands of stale selections, those that others rest on first."""
    facts = {name: provenance_of(index, name) for name in list_selections(index)}
    waiting, renewed = dict(facts), []
    while waiting:
        ready = [name for name in waiting if _base(facts[name]) not in waiting]
        if not ready:
            raise ValueError(f"these selections rest on each other: {', '.join(sorted(waiting))}")
        for name in ready:
            found = waiting.pop(name)
            # One command may make several parts: the first of them has made the others anew.
            if is_stale(index, found) and is_stale(index, provenance_of(index, name)):
                base = _base(found)
                reference = f"{index.directory}@{base}" if base else str(index.directory)
                made = _run_again(reference, found["command"], name)
                renewed += [each["name"] for each in made["selections"]]
    current = sorted(facts.keys() - set(renewed))
    print(f"renewed    {', '.join(renewed) or 'nothing'}")
    return {"index_dir": str(index.directory), "renewed": renewed, "current": current}


def _run_again(reference: str, command: list[str], name: str) -> dict[str, Any]:
    """Repeat the command of a selection.

    Raises:
        ValueError: it is not understood any more, as some conditions of the first edition are.
    """
    try:
        return _run(tyro.cli(Arguments, args=[reference, *command]))
    except ValueError as error:
        words = shlex.join(["python", "tools/select_samples.py", reference, *command])
        raise ValueError(
            f"the selection {name!r} cannot be made again by `{words}`: {error}\nIf its condition "
            "is from before conditions were SQL, write it anew (docs/selection.md)"
        ) from error


def _base(facts: dict[str, Any]) -> str:
    """Name of the selection that another one was chosen from; empty if it was the whole index."""
    return (facts.get("base") or {}).get("name", "")


def _describe(index: Index, name: str) -> dict[str, Any]:
    try:
        selection = open_selection(index, name)
    except ValueError as error:
        return {"name": name, "problem": str(error)}
    return {
        "name": name,
        "num_samples": selection.num_samples,
        "fingerprint": selection.fingerprint,
        "made_by": made_by(index, selection),
    }


if __name__ == "__main__":
    sys.exit(main())
