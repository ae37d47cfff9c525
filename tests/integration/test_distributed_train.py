"""torchrun with gloo on this machine: any number of ranks trains the same model, killed or not.

The long form, recorded in docs/results/distributed-cpu.md:
`TESSERA_KILLS=20 python -m pytest -s -o faulthandler_timeout=0 THIS_FILE`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from tessera.model.losses.config import LossKind, MultiText
from tessera.training.sample_ids import read_sample_ids

ROOT = Path(__file__).resolve().parents[2]
BATCH = 16
STEPS_OF_PASS = 6
NUM_KILLS = int(os.environ.get("TESSERA_KILLS", "2"))
NUM_STEPS = STEPS_OF_PASS * max(2, NUM_KILLS)
LOSSES = [*get_args(LossKind), *get_args(MultiText)]
"""Losses, and CLIP's of two texts an image by their definitions."""
LONG = LOSSES if NUM_KILLS > 2 else []
"""All losses on several ranks take minutes; test_distributed_losses.py has all of them."""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def torchrun(num_ranks: int, *words: object) -> list[str]:
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*starter, f"--nproc-per-node={num_ranks}", *map(str, words)]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(command: list[str]) -> str:
    process = start(command)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def training(index: Path, run_dir: Path, num_ranks: int, *more: object) -> list[str]:
    fixed = {
        "--data.train": index,
        "--run-dir": run_dir,
        "--model": "tessera-demo",
        "--total-samples": BATCH * NUM_STEPS,
        "--batch-size": BATCH,
        "--optim.warmup-samples": 4 * BATCH,
        "--precision": "float32",
        "--num-threads": 1,
        "--data.num-threads": 1,
        "--save-every": 2,
        "--log-every": 1,
    }
    words = [word for pair in fixed.items() for word in pair]
    none = ["--evaluation.retrieval", "--evaluation.zero-shot", "--log-sample-ids"]
    return torchrun(num_ranks, "train.py", "flickr8k", *words, *none, *more)


def losses(run_dir: Path) -> dict[int, float]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run_dir / "checkpoints" / f"step_{step:09d}"
    return load_file(folder / "open_clip_model.safetensors")


def descendants(pid: int) -> list[int]:
    found = [pid]
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in children.read_text().split() if children.exists() else []:
        found += descendants(int(child))
    return found


def kill_at(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    """SIGKILL to torchrun and all ranks, as soon as the step is in the log."""
    deadline = time.monotonic() + 180
    while max(losses(run_dir), default=0) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def test_killed_runs_go_on_with_any_number_of_ranks(coloured_index: Path, tmp_path: Path) -> None:
    """The order of samples goes on unbroken, and the losses to float32 rounding."""
    choose = random.Random(11)
    loss = ("--loss.kind", "fastclip_v3")
    finish(training(coloured_index, tmp_path / "whole", 1, *loss))
    run_dir = tmp_path / "killed"
    # Killed steps ascend, so that each process gets somewhere; none is the last one.
    kills: list[dict[str, int]] = []
    for number, step in enumerate(sorted(choose.sample(range(1, NUM_STEPS - 1), NUM_KILLS))):
        # Every other kill hits four ranks; what goes on from there is killed as well.
        ranks = choose.choice([1, 2, 4]) if number % 2 else 4
        kills.append({"step": step, "ranks": ranks})
        kill_at(start(training(coloured_index, run_dir, ranks, *loss)), run_dir, step)
    finish(training(coloured_index, run_dir, 2, *loss))
    whole, killed = losses(tmp_path / "whole"), losses(run_dir)
    assert list(killed) == list(range(1, NUM_STEPS + 1))
    assert killed == pytest.approx(whole, abs=1e-3)
    # FastCLIP's value hardly moves in so few steps. Weights do, some by a hundredth in one step;
    # keys' biases have no gradient but rounding, which Adam enlarges.
    end, resumed = weights(tmp_path / "whole", NUM_STEPS), weights(run_dir, NUM_STEPS)
    apart = max(float((end[name] - resumed[name]).norm() / end[name].norm()) for name in end)
    assert apart < 1e-3
    ids = read_sample_ids(run_dir / "sample_ids.jsonl")
    assert ids == read_sample_ids(tmp_path / "whole" / "sample_ids.jsonl")
    for first in range(1, NUM_STEPS + 1, STEPS_OF_PASS):
        served = [id_ for step in range(first, first + STEPS_OF_PASS) for id_ in ids[step]]
        assert sorted(served) == list(range(BATCH * STEPS_OF_PASS)), "each sample once a pass"
    differences = [abs(killed[step] - whole[step]) for step in whole]
    print(
        json.dumps(
            {
                "kills": kills,
                "final_loss": [whole[NUM_STEPS], killed[NUM_STEPS]],
                "largest_loss_difference": max(differences),
                "largest_relative_difference_of_weights": apart,
            }
        )
    )


Runs = dict[str, dict[str, list[float]]]


def on_ranks(index: Path, folder: Path, num_ranks: int, strategy: str, kinds: list[str]) -> Runs:
    script = ROOT / "tests" / "integration" / "losses_on_ranks.py"
    chunks = 1 if num_ranks == 1 else 2
    words = torchrun(num_ranks, script, index, folder, strategy, chunks, *kinds)
    return json.loads(finish(words).splitlines()[-1])


@pytest.fixture(scope="module")
def on_one_rank(coloured_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return on_ranks(coloured_index, tmp_path_factory.mktemp("one"), 1, "ddp", LOSSES)


@pytest.mark.parametrize(
    ("num_ranks", "strategy", "kinds"),
    [
        pytest.param(2, "fsdp", LONG or ["clip", "fastclip_v3", "all_texts"], id="2 ranks, FSDP2"),
        pytest.param(
            4, "ddp", LONG or ["siglip", "isogclr", "fastclip_v3", "per_version"], id="4 ranks, DDP"
        ),
    ],
)
def test_ranks_and_chunks_change_a_loss_by_rounding_only(
    num_ranks: int,
    strategy: str,
    kinds: list[str],
    on_one_rank: Runs,
    coloured_index: Path,
    tmp_path: Path,
) -> None:
    """Every rank encodes in two chunks; a session opened from the checkpoint goes on bit by bit."""
    found = on_ranks(coloured_index, tmp_path, num_ranks, strategy, kinds)
    for kind in kinds:
        run = found[kind]
        assert run["whole"] == pytest.approx(on_one_rank[kind]["whole"], abs=2e-5), kind
        assert run["again"] == run["whole"][-len(run["again"]) :], kind


def test_one_rank_goes_on_bit_by_bit(on_one_rank: Runs) -> None:
    for kind, run in on_one_rank.items():
        assert run["again"] == run["whole"][-len(run["again"]) :], kind
