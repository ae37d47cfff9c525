from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.simulation.costs import Assumptions, cost

ROOT = Path(__file__).resolve().parents[4]


def test_a_row_by_hand() -> None:
    given = Assumptions(
        pairs_per_gpu_s=1000,
        pairs_per_gpu=100,
        decode_per_core_s=500,
        cores_per_gpu=4,
        gpus_per_node=2,
        bytes_per_sample=1e5,
        node_read_bytes_s=1e9,
        storage_bytes_s=1e9,
        link_bytes_s=1e9,
        parameters=1e6,
        embed_dim=250,
        flop_per_pair=1e9,
    )
    row = cost(4, 3.6e6, given)
    assert (row.batch_size, row.step_s) == (400, pytest.approx(0.1))
    assert row.pass_hours == pytest.approx(0.25)
    assert row.decode_share == pytest.approx(0.5)
    assert row.node_read_share == pytest.approx(0.2)
    assert row.storage_share == pytest.approx(0.4)
    assert row.gradient_share == pytest.approx(2 * 0.75 * 4e6 / 1e9 / 0.1)
    assert row.feature_share == pytest.approx(4 * 0.75 * 400 * 250 * 4 / 1e9 / 0.1)
    assert row.loss_share == pytest.approx(100 * 400 * 250 * 12 / (100 * 1e9))
    assert row.limit == "the GPU"


def test_the_scarcest_resource_is_the_limit() -> None:
    assert cost(1, 1e7, Assumptions(cores_per_gpu=2)).limit == "decoding"
    assert cost(8, 1e7, Assumptions(node_read_bytes_s=1e6)).limit == "a machine's reads"
    assert cost(512, 1e7, Assumptions(storage_bytes_s=1e6)).limit == "shared storage"


def test_a_figure_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="link_bytes_s"):
        Assumptions(link_bytes_s=0)


def test_the_tool_checks_and_computes() -> None:
    command = [
        sys.executable,
        "tools/simulate_scale.py",
        "--samples",
        "20000",
        "--ranks",
        "1",
        "64",
    ]
    command += ["--gpus", "8", "--samples-per-shard", "500", "--pairs-per-rank", "8"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["passed"]
    assert [found["order"] for found in result["checks"]] == ["global", "window"]
    assert result["costs"][0]["num_gpus"] == 8
    refused = subprocess.run(
        [*command, "--gpus", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode == 2
    assert "at least 1" in refused.stderr
