"""The dry form of a GPU visit: every command of it works."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tessera.tools.gpu_acceptance import STEPS, Step, run_step

ROOT = Path(__file__).resolve().parents[2]
GROUPS = (("probe", "decode"), ("tests", "train-gpu-decode"), ("step", "profile"), ("comparison",))
ON_A_GPU_ONLY = {"step-compiled", "train-cpu-decode"}


def visit(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/gpu_acceptance.py", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures as a visit draws them, once for all steps."""
    folder = tmp_path_factory.mktemp("photos")
    assert STEPS[0].dry is not None
    words = STEPS[0].dry.replace("{scratch}", str(folder)).split()
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    drawn = json.loads(done.stdout.splitlines()[-1])
    assert 60_000 < drawn["bytes_per_photo"] < 160_000, "as large as photos are"
    return folder / "photos" / "index"


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_every_command_works(names: tuple[str, ...], photos: Path, tmp_path: Path) -> None:
    done = visit("--dry", "--out", tmp_path, "--photos", photos, "--only", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])["steps"]
    assert ended == dict.fromkeys(names, "done"), "no promise is judged on a CPU"
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    records = {found["name"]: found["record"] for found in map(json.loads, lines)}
    if "probe" in names:
        assert records["probe"]["sound"] == 2
    assert "the figures mean nothing" in (tmp_path / "summary.md").read_text()


def test_the_visit_fits_its_time_and_the_groups_are_all_there_is() -> None:
    names = {step.name for step in STEPS}
    assert names == {"photos"}.union(*GROUPS) | ON_A_GPU_ONLY
    assert {step.name for step in STEPS if step.dry is None} == ON_A_GPU_ONLY
    assert sum(step.minutes for step in STEPS) <= 9.01


def step_that(least: float) -> Step:
    return Step(
        name="step",
        command="",
        dry="",
        minutes=1,
        shows="",
        figure=lambda record: record["a"],
        least=least,
    )


def test_a_record_is_held_to_its_promise(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('{\"a\": 1}'); print('{\"a\": 2}'); print('{no json')")
    for least, word in ((2, "shown"), (3, "missed")):
        found = run_step(step_that(least), str(script), tmp_path / "log", 60)
        assert (found.status, found.record) == (word, {"a": 2})
    found = run_step(step_that(3), str(script), tmp_path / "log", 60, dry=True)
    assert found.status == "done"
    script.write_text("import sys; sys.exit('it broke')")
    found = run_step(step_that(0), str(script), tmp_path / "log", 60)
    assert (found.status, found.reason) == ("failed", "exit status 1: it broke")


def test_what_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    script, child = tmp_path / "script.py", tmp_path / "child"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid)); time.sleep(100)"
    )
    found = run_step(step_that(0), str(script), tmp_path / "log", 3)
    assert found.status == "out of time"
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child.read_text()}").exists():
        state = Path(f"/proc/{child.read_text()}/stat").read_text().split()[2]
        if state == "Z":  # ended; its new parent has not asked for its status yet
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_wrong_use_is_told(tmp_path: Path) -> None:
    assert visit("--out", tmp_path, "--only", "nothing").returncode == 2
    assert visit("--dry").returncode == 2, "without --out"
