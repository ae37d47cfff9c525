r"""Which of these recipes is better, and is the difference more than another seed would give?

    python tools/compare.py --variants clip flip-50 cluster-rgb-03 --out runs/compare/cc12m
    python tools/compare.py --base flickr8k --variants clip flip-50 cluster-rgb-03 fill-03 \
        --seeds 0 1 2 --out runs/compare/flickr8k -- --total-samples 32000

Trains every variant with every seed at equal samples and at equal compute, each an ordinary
`python train.py` in a folder of its own under --out, and writes comparison.html, comparison.md and
comparison.json there. A variant is a recipe's name, `fill-03`, `fill-05` or a table of
--variants-file; with --base a recipe gives its mask to that one, without --base it is run as it is.
The first variant is the baseline. Words after `--` are given to all runs. The same command resumes
after it was stopped, and makes only the report when all runs are finished. docs/comparison.md
explains the tables.

If some runs are not finished, the report is written, names them, and the exit status is 1.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro

if TYPE_CHECKING:  # --help must not wait for torch
    from tessera.tools.comparison.plan import Plan

Form = Literal["samples", "compute"]
_PAPER = ("clip", "flip-50", "cluster-rgb-03", "cluster-rgb-05", "fill-03", "cluster-embedding")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train variants with several seeds and compare them."""

    out: Path
    """Folder of the run folders and the report."""
    variants: tuple[str, ...] = _PAPER
    """Variants to compare, the baseline first: recipes, `fill-03`, `fill-05`, or tables of
    --variants-file. By default the rows of Cluster Masking's main table."""
    variants_file: Path | None = None
    """TOML file of further variants: tables with `like` (a recipe) and `words`. Tables that
    --variants does not name come last."""
    base: str = ""
    """Recipe whose data, model and schedule all variants take; empty takes each one's own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of each variant for each."""
    forms: tuple[Form, ...] = ("samples", "compute")
    """samples: all see as many pairs as the baseline. compute: as many as cost its operations."""
    jobs: int = 1
    """Runs at once. Their times then depend on each other."""
    title: str = ""
    """Heading of the report; empty names base and baseline."""
    report_only: bool = False
    """Train nothing; the report names what is not finished."""
    dry_run: bool = False
    """Print the commands of the runs, and end."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {self.jobs}")
        if not self.forms:
            raise ValueError("--forms needs samples, compute or both")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv, stopped="stopped; the same command resumes here")


def _run(words: list[str]) -> dict[str, Any] | program.Ended:
    own, shared = _split(words)
    arguments = tyro.cli(Arguments, args=own, description=program.describe(__doc__))
    from tessera.tools.comparison.runs import is_finished, make_runs

    plan = _plan(arguments, shared)
    if arguments.dry_run:
        print("\n".join(run.command for run in plan.runs))
        return {"runs": len(plan.runs), "flops": sum(r.flops for r in plan.runs)}
    if arguments.report_only:
        failures = {run.folder: "not finished" for run in plan.runs if not is_finished(run)}
    else:
        failures = make_runs(plan.runs, arguments.jobs, lambda line: print(line, flush=True))
    result = _report(arguments, plan, failures, ["python", "tools/compare.py", *words])
    return program.Ended(result=result, status=program.FAILED) if failures else result


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words of the tool and, behind `--`, of the runs."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def _plan(arguments: Arguments, shared: Sequence[str]) -> Plan:
    from tessera.tools.comparison.plan import make_plan
    from tessera.tools.comparison.variants import choose_variants

    variants = choose_variants(arguments.variants, arguments.variants_file, arguments.base)
    return make_plan(variants, arguments.seeds, arguments.forms, shared, arguments.out)


def _report(
    arguments: Arguments, plan: Plan, failures: dict[Path, str], command: Sequence[str]
) -> dict[str, Any]:
    """Write the three files; what to say of them on the last line."""
    import torch

    from tessera.pipeline.durable import write_text
    from tessera.tools.comparison.markdown import markdown
    from tessera.tools.comparison.page import write_page
    from tessera.tools.comparison.reading import reading
    from tessera.tools.comparison.results import as_json, tables_of
    from tessera.tools.comparison.runs import read_run
    from tessera.training.environment import machine

    finished = {run.folder: read_run(run) for run in plan.runs if run.folder not in failures}
    tables = tables_of(plan, finished)
    sentences = reading(tables)
    commands = [shlex.join(command), *(run.command for run in plan.runs)]
    reasons = {folder.name: reason for folder, reason in failures.items()}
    title = arguments.title or f"Variants of {arguments.base or plan.baseline}, compared"
    page = arguments.out / "comparison.html"
    write_page(page, title, tables, sentences, commands, list(reasons.items()))
    text = f"# {title}\n\n{markdown(tables, sentences, commands[:1])}"
    write_text(page.with_suffix(".md"), text)
    record = {
        "title": title,
        "command": commands[0],
        "reading": sentences,
        "tables": as_json(tables),
        "failed": reasons,
        "environment": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    write_text(page.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    print(text)
    return {"report": str(page), "finished": len(finished), "failed": reasons}


if __name__ == "__main__":
    sys.exit(main())
