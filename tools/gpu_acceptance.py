"""Is everything right on this GPU, and how fast is it? One command for a whole visit.

    python tools/gpu_acceptance.py --out DIR
    python tools/gpu_acceptance.py --out DIR --only probe tests --minutes 9
    python tools/gpu_acceptance.py --out DIR --dry

Runs the steps of the table below as commands of their own. Each has a time limit, and none stops
the others. Without --photos it draws its own. --dry tries every command on a CPU at its smallest
size. Writes summary.md, records.json and the log of every step to DIR, anew after each step.
The exit status is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split

_CHECKOUT = Path(__file__).resolve().parents[1]
_GRACE_S = 10.0
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A row of the table."""

    name: str
    command: str
    """Words after `python`, run in the checkout; {index} and {scratch} are filled in."""
    dry: str | None
    """The same at its smallest size on a CPU; None where a CPU cannot run it."""
    minutes: float
    """Most that it may take on a GPU."""
    shows: str
    """What must come out, in words."""
    figure: Callable[[Record], float] | None = None
    """What `least` is compared with."""
    least: float = 0.0


_RECIPE = "tools/benchmark_train.py recipe cluster-rgb-03 --data.train {index}"
_END = " --steps 20 --warmup 5 --model ViT-B-16 --batch-size 1024 --total-samples 61440"
_DRY_END = (
    " --steps 2 --warmup 1 --model tessera-demo --batch-size 16 --total-samples 384 --device cpu"
    " --data.device cpu"
)
_DATA = "tools/benchmark_data.py {index} --no-storage"
_DRY_RUN = (
    "-- --model tessera-demo --total-samples 32 --batch-size 16 --optim.warmup-samples 16"
    " --data.train {index} --evaluation.retrieval {index} --evaluation.zero-shot"
)


def _over_open_clip(record: Record) -> float:
    return record["ratios"]["ours_50"]["open_clip"]["median"]


STEPS = (
    Step(
        name="photos",
        command="tools/draw_photos.py {scratch}/photos --count 2048",
        dry="tools/draw_photos.py {scratch}/photos --count 24",
        minutes=0.5,
        shows="JPEG files as large as photos, and their index",
    ),
    Step(
        name="probe",
        command="tools/benchmarks/decode_graphs.py {index}",
        dry="tools/benchmarks/decode_graphs.py {index} --device cpu --graphs window whole-cuda",
        minutes=0.8,
        shows="a graph of {window, whole} x {interpolated, repeated colours} x {JPEG engine, CUDA"
        " decoder} that decodes as Pillow",
        figure=lambda record: record["sound"],
        least=1,
    ),
    Step(
        name="tests",
        command="-m pytest tests/gpu -m gpu -p no:cacheprovider",
        dry="-m pytest tests/gpu/test_device_copy.py -p no:cacheprovider",
        minutes=2.5,
        shows="the GPU computes what the CPU does, and the host never waits",
    ),
    Step(
        name="decode",
        command=_DATA + " --device cuda --images 4096 --repeats 1 --batch-size 256 --baselines"
        " dali_reader",
        dry=_DATA + " --device cpu --images 24 --repeats 1 --batch-size 24 --threads 1 --baselines",
        minutes=0.5,
        shows="pictures a second of the pipeline alone",
    ),
    Step(
        name="step",
        command="tools/benchmark_train.py compare --model ViT-B-16 --batch-size 512 --precision"
        " bfloat16 --steps 5 --repeats 3",
        dry="tools/benchmark_train.py compare --model ViT-S-32-alt --batch-size 2 --threads 1"
        " --steps 1 --repeats 1 --sides open_clip ours_50",
        minutes=1,
        shows="2.4 times open_clip's step, 45% of the matrix rate",
        figure=_over_open_clip,
        least=2.4,
    ),
    Step(
        name="step-compiled",
        command="tools/benchmark_train.py compare --model ViT-B-16 --batch-size 512 --precision"
        " bfloat16 --steps 5 --repeats 3 --compile --sides open_clip ours_50",
        dry=None,
        minutes=0.7,
        shows="whether recipes for one GPU should compile: a higher ratio than `step`",
    ),
    Step(
        name="train-gpu-decode",
        command=_RECIPE + _END + " --data.device cuda",
        dry=_RECIPE + _DRY_END,
        minutes=0.7,
        shows="6,000 pairs/s from JPEG files that the GPU decodes, data wait below 2%",
        figure=lambda record: record["pairs_per_s"],
        least=6000,
    ),
    Step(
        name="train-cpu-decode",
        command=_RECIPE + _END + " --data.device cpu",
        dry=None,
        minutes=0.7,
        shows="the same with pictures that the CPU decodes",
    ),
    Step(
        name="profile",
        command="tools/benchmark_train.py profile --model ViT-B-16 --batch-size 512 --precision"
        " bfloat16",
        dry="tools/benchmark_train.py profile --model ViT-S-32-alt --batch-size 2 --threads 1"
        " --steps 1 --warmup 1",
        minutes=0.4,
        shows="which kernels a step is made of",
    ),
    Step(
        name="comparison",
        command="tools/compare.py --base demo --variants clip cluster-rgb-03 --seeds 0 --out"
        " {scratch}/comparison",
        dry="tools/compare.py --base flickr8k --variants clip flip-50 --seeds 0 --jobs 1 --out"
        " {scratch}/comparison " + _DRY_RUN,
        minutes=1.2,
        shows="runs that learn: above chance, cluster masking beside plain CLIP",
    ),
)
"""What a visit runs, in the order of what matters most; a short visit ends early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a step; `status` is shown, missed, done, failed, out of time or left out."""

    name: str
    command: str
    status: str
    seconds: float
    reason: str
    record: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv, stopped="stopped; what was done is in --out")


def _run(words: list[str]) -> Mapping[str, Any] | program.Ended:
    arguments = _parse(words)
    os.chdir(_CHECKOUT)
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = [step for step in STEPS if not arguments.only or step.name in arguments.only]
    if not arguments.photos and STEPS[0] not in wanted:
        wanted.insert(0, STEPS[0])
    ends = time.monotonic() + 60 * arguments.minutes
    outcomes: list[Outcome] = []
    with TemporaryDirectory(prefix="tessera-acceptance-") as scratch:
        index = arguments.photos or f"{scratch}/photos/index"
        for step in wanted:
            print(f"{step.name}: {step.shows}", file=sys.stderr, flush=True)
            given = step.dry if arguments.dry else step.command
            command = given and given.replace("{index}", index).replace("{scratch}", scratch)
            left = ends - time.monotonic()
            limit = left if arguments.dry else min(left, 60 * step.minutes)
            log = arguments.out / f"{step.name}.log"
            found = run_step(step, command, log, limit, dry=arguments.dry)
            outcomes.append(found)
            print(f"    {found.status} ({found.seconds:.0f} s) {found.reason}", file=sys.stderr)
            page = summary(outcomes, dry=arguments.dry)
            (arguments.out / "summary.md").write_text(page, encoding="utf-8")
            lines = "".join(json.dumps(asdict(each)) + "\n" for each in outcomes)
            (arguments.out / "records.jsonl").write_text(lines, encoding="utf-8")
    print(summary(outcomes, dry=arguments.dry))
    result = {"out": str(arguments.out), "steps": {each.name: each.status for each in outcomes}}
    is_bad = any(found.status in ("failed", "out of time") for found in outcomes)
    return program.Ended(result=result, status=program.FAILED) if is_bad else result


def run_step(
    step: Step, command: str | None, log: Path, limit_s: float, *, dry: bool = False
) -> Outcome:
    """Run a command to its end or to that of its time; nothing that it started stays behind.

    A dry run's figures are held to no promise.
    """
    outcome = partial(Outcome, name=step.name, command=f"python {command}")
    if command is None or limit_s < 1:
        reason = "a CPU cannot run it" if command is None else "no time is left"
        return outcome(status="left out", seconds=0.0, reason=reason, record={})
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            [sys.executable, *command.split()],
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"TESSERA_GPU_TESTS_ON_CPU": "1"},
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds = time.monotonic() - started
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    record = next((json.loads(line) for line in reversed(lines) if _is_record(line)), {})
    said = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    if code is None:
        reason = f"{limit_s:.0f} s were not enough"
        return outcome(status="out of time", seconds=seconds, reason=reason, record=record)
    if code:
        reason = f"exit status {code}: {said[-300:]}"
        return outcome(status="failed", seconds=seconds, reason=reason, record=record)
    if step.figure is None or dry:
        return outcome(status="done", seconds=seconds, reason="", record=record)
    figure = step.figure(record)
    status = "shown" if figure >= step.least else "missed"
    reason = f"{figure:,.2f}, at least {step.least:,g} promised"
    return outcome(status=status, seconds=seconds, reason=reason, record=record)


def summary(outcomes: Sequence[Outcome], *, dry: bool) -> str:
    """The page of a visit, in Markdown."""
    import torch

    from tessera.training.environment import machine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = ["# GPU acceptance" + (", dry run: the figures mean nothing" if dry else ""), ""]
    lines += [f"- {name}: {value}" for name, value in machine(device).items()]
    lines += ["", "| step | must show | came out | seconds |", "|---|---|---|---|"]
    shows = {step.name: step.shows for step in STEPS}
    for found in outcomes:
        what = f"{found.status} {found.reason}".strip().replace("|", "\\|")
        lines.append(f"| `{found.name}` | {shows[found.name]} | {what} | {found.seconds:.0f} |")
    return "\n".join([*lines, "", *(f"    {found.command}" for found in outcomes)]) + "\n"


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=program.describe(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for records, logs and summary"
    )
    parser.add_argument("--only", nargs="+", default=(), choices=[step.name for step in STEPS])
    parser.add_argument("--photos", default="", help="INDEX[@SELECTION] of your own photos")
    parser.add_argument("--minutes", type=float, default=9, help="time of the whole visit")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at the smallest size")
    arguments = parser.parse_args(words)
    if not arguments.dry and not shutil.which("nvidia-smi"):
        parser.error("there is no nvidia-smi here: run it on a machine with a GPU, or with --dry")
    if arguments.minutes <= 0:
        parser.error("--minutes must be above 0")
    arguments.out = arguments.out.absolute()
    arguments.photos = arguments.photos and str(Path(arguments.photos).absolute())
    return arguments


def _is_record(line: str) -> bool:
    return line.startswith("{") and line.endswith("}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and everything that it started."""
    for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())
