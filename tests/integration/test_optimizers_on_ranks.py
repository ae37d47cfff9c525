"""Optimisers, gradient clipping and the average of weights: the same on one rank and cut in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def optimizers(index: Path, folder: Path, num_ranks: int) -> dict[str, Any]:
    starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    done = subprocess.run(
        [
            sys.executable,
            *(starter if num_ranks > 1 else []),
            str(HERE / "optimizers_on_ranks.py"),
            *(str(index), str(folder)),
        ],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone(coloured_index: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return optimizers(coloured_index, tmp_path_factory.mktemp("alone"), 1)


def test_two_ranks_with_half_the_model_each_update_as_one(
    alone: dict[str, Any], coloured_index: Path, tmp_path: Path
) -> None:
    found = optimizers(coloured_index, tmp_path, 2)
    assert found.keys() == alone.keys()
    for name, runs in found.items():
        assert runs["matrix"] == pytest.approx(alone[name]["matrix"], rel=1e-5), name
        expected = alone[name]["whole"]  # rounding grows from step to step, in gradients most
        assert runs["whole"][::2] == pytest.approx(expected[::2], rel=2e-4), name
        assert runs["whole"][1::2] == pytest.approx(expected[1::2], rel=2e-3), name
        assert runs["again"] == pytest.approx(runs["whole"][4:], rel=1e-6), name
        assert runs["average"] == pytest.approx(alone[name]["average"], rel=1e-5), name
        assert len(set(runs["whole"][::2])) == 4, name  # every step moved the weights


def test_alone_a_resumed_run_repeats_every_optimiser_bit_for_bit(alone: dict[str, Any]) -> None:
    for name, runs in alone.items():
        assert runs["again"] == runs["whole"][4:], name
