"""The dry run of a GPU visit: every command of it works."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tools.acceptance.steps import DRY, steps

ROOT = Path(__file__).resolve().parents[2]


def visit(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/gpu_acceptance.py", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )


GROUPS = (
    ("tests-gpu", "sanitizer", "profile", "masks", "loss"),
    ("step-vit-s-32-alt",),
    ("end-to-end-cpu-decode", "decode-cpu"),
    ("comparison",),
)


@pytest.mark.parametrize("names", GROUPS, ids=("parts", "step", "end to end", "runs"))
def test_every_command_works(names: tuple[str, ...], tmp_path: Path) -> None:
    done = visit("--dry", "--out", tmp_path, "--only", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])["steps"]
    assert set(ended) == {"machine", "photos", *names}
    assert set(ended.values()) <= {"done", "left out"}
    written = json.loads((tmp_path / "records.json").read_text())
    check_records({outcome["name"]: outcome["record"] for outcome in written})
    page = (tmp_path / "summary.md").read_text()
    assert "The figures mean nothing" in page
    assert "promised" not in page
    with tarfile.open(tmp_path / "logs.tar.gz") as logs:
        kept = set(logs.getnames())
    assert {f"logs/{name}.log" for name, how in ended.items() if how == "done"} <= kept


def check_records(records: dict[str, Any]) -> None:
    assert 60_000 < records["photos"]["bytes_per_photo"] < 160_000, "as large as photos are"
    if "comparison" in records:
        assert records["comparison"]["finished"] >= 3
    elif "profile" in records:
        assert records["profile"]["matrix_work_share"] > 0.2
        assert records["masks"]["masks"]
        assert records["loss"]["loss"]
    elif "step-vit-s-32-alt" in records:
        ratios = records["step-vit-s-32-alt"]["ratios"]
        assert ratios["ours_50"]["open_clip"]["median"] > 0
    else:
        assert records["end-to-end-cpu-decode"]["pairs_per_s"] > 0
        assert records["decode-cpu"]["sides"]["loader"]["images_per_s"]["median"] > 0


def test_the_groups_are_all_there_is(tmp_path: Path) -> None:
    known = {step.name for step in steps(DRY, "", tmp_path)}
    assert known == {"machine", "photos"}.union(*GROUPS)


def test_wrong_use_is_told(tmp_path: Path) -> None:
    assert visit("--out", tmp_path, "--only", "nothing").returncode == 2
    assert visit("--out", tmp_path, "--wheels", tmp_path).returncode == 2
