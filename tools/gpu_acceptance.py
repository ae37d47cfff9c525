"""Is everything right on this GPU, and how fast is it? One command for a whole visit.

    python tools/gpu_acceptance.py --out DIR
    python tools/gpu_acceptance.py --out DIR --parts correctness figures --minutes 9
    python tools/gpu_acceptance.py --out DIR --dry

Runs the GPU tests, the benchmarks and a training comparison as commands of their own. Each has a
time limit, and none stops the others: whatever ends badly is a line of the summary. Without
--photos it draws its own. On a machine that lacks packages, --wheels names a folder of wheels that
are installed into a temporary folder first. --dry tries every command on a CPU at its smallest
size.

Writes summary.md, records.json and logs.tar.gz to DIR, anew after every step, so that a visit cut
short keeps what it has; and the report of the comparison. The exit status is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split

from tools.acceptance.budgets import judge
from tools.acceptance.running import Outcome, run_step
from tools.acceptance.steps import DRY, FULL, Step, steps
from tools.acceptance.summary import records_of, summarise

_CHECKOUT = Path(__file__).resolve().parents[1]
_PARTS = ("correctness", "figures", "training")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv, stopped="stopped; what was done is in --out")


def _run(words: list[str]) -> dict[str, object] | program.Ended:
    arguments = _parse(words)
    os.chdir(_CHECKOUT)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="tessera-acceptance-") as folder:
        try:
            environment = _environment(arguments.wheels, Path(folder) / "site")
        except subprocess.CalledProcessError as error:
            raise RuntimeError("pip could not install the wheels") from error
        outcomes = _run_all(arguments, Path(folder), environment)
    print(summarise(outcomes, dry=arguments.dry))
    bad = [found.name for found in outcomes if found.status in ("failed", "out of time")]
    result: dict[str, object] = {
        "out": str(arguments.out),
        "dry": arguments.dry,
        "steps": {found.name: found.status for found in outcomes},
    }
    if not arguments.dry:
        result["budgets"] = {v.budget.what: v.word for v in judge(records_of(outcomes))}
    return program.Ended(result=result, status=program.FAILED) if bad else result


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for records and summary")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="what to run")
    parser.add_argument("--only", nargs="+", default=(), metavar="STEP", help="these steps alone")
    parser.add_argument("--photos", default="", help="INDEX[@SELECTION] of carried photos")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--minutes", type=float, default=60, help="time of the whole visit")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at the smallest size")
    arguments = parser.parse_args(words)
    arguments.out = arguments.out.absolute()
    if arguments.photos:
        arguments.photos = str(Path(arguments.photos).absolute())
    if arguments.wheels and not list(arguments.wheels.glob("*.whl")):
        parser.error(f"--wheels: there is no wheel in {arguments.wheels}")
    if arguments.minutes <= 0:
        parser.error("--minutes must be above 0")
    return arguments


def _run_all(
    arguments: argparse.Namespace, scratch: Path, environment: dict[str, str]
) -> list[Outcome]:
    """Run what was asked for, and write down what came of it after each step."""
    ends = time.monotonic() + 60 * arguments.minutes
    wanted = _wanted(arguments, steps(DRY if arguments.dry else FULL, arguments.photos, scratch))
    logs = scratch / "logs"
    logs.mkdir()
    outcomes: list[Outcome] = []
    for number, step in enumerate(wanted, 1):
        print(f"{number}/{len(wanted)} {step.name}: {step.question}", file=sys.stderr, flush=True)
        left = ends - time.monotonic()
        outcomes.append(run_step(step, logs / f"{step.name}.log", environment, left))
        last = outcomes[-1]
        print(
            f"    {last.status} ({last.seconds:.0f} s) {last.reason}", file=sys.stderr, flush=True
        )
        for path in step.keeps:
            if path.is_file():
                shutil.copy(path, arguments.out)
        _write(arguments.out, outcomes, logs, dry=arguments.dry)
    return outcomes


def _wanted(arguments: argparse.Namespace, known: list[Step]) -> list[Step]:
    """The steps asked for; the photos are drawn whenever one of them reads files.

    Raises:
        SystemExit: a name is unknown.
    """
    unknown = set(arguments.only) - {step.name for step in known}
    if unknown:
        names = ", ".join(step.name for step in known)
        print(f"error: no step {', '.join(sorted(unknown))}; there are {names}", file=sys.stderr)
        raise SystemExit(2)
    return [
        step
        for step in known
        if (step.name in arguments.only if arguments.only else step.part in arguments.parts)
        or step.name in ("machine", "photos")
    ]


def _environment(wheels: Path | None, site: Path) -> dict[str, str]:
    """Of the steps; with the carried wheels on the path."""
    if not wheels:
        return dict(os.environ)
    files = [str(path.absolute()) for path in sorted(wheels.glob("*.whl"))]
    how = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(site))
    subprocess.run([sys.executable, "-m", "pip", "install", *how, *files], check=True)
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _write(out: Path, outcomes: Sequence[Outcome], logs: Path, *, dry: bool) -> None:
    records = [found.to_json() for found in outcomes]
    (out / "records.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    (out / "summary.md").write_text(summarise(outcomes, dry=dry), encoding="utf-8")
    with tarfile.open(out / "logs.tar.gz", "w:gz") as tar:
        tar.add(logs, arcname="logs")


if __name__ == "__main__":
    sys.exit(main())
