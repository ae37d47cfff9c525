from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tessera.tools.comparison import runs as module
from tessera.tools.comparison.plan import Plan, PlannedRun, flops_of
from tessera.tools.comparison.runs import is_finished, make_runs, read_run
from tessera.tools.comparison.scores import figures_of

FAKE_TRAIN = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
(folder / "made").write_text(" ".join(sys.argv[1:]))
if folder.name.startswith("flip-50"):
    print("failed: the disk is full", file=sys.stderr)
    sys.exit(1)
if folder.name.startswith("cluster"):
    sys.exit(3)
"""


STOPPED_TRAIN = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
got = []
signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
(folder / "group").write_text(str(os.getpgid(0)))
os.kill(os.getppid(), signal.SIGTERM)
while not got:
    time.sleep(0.01)
(folder / "stopped").write_text(str(got))
"""


@pytest.fixture
def runs(plan: Plan, tmp_path: Path) -> list[PlannedRun]:
    """A run of each variant, in folders of this test."""
    moved = []
    for run in plan.forms["samples"][:3]:
        config = replace(run.config, run_dir=str(tmp_path / run.folder.name))
        moved.append(replace(run, config=config, words=(*run.words[:-1], config.run_dir)))
    return moved


def test_runs_are_made_once_and_failures_are_told(
    runs: list[PlannedRun],
    finish_run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "train.py").write_text(FAKE_TRAIN, "utf-8")
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    done = replace(runs[0], config=replace(runs[0].config, run_dir=str(tmp_path / "clip-done")))
    finish_run(done, top1=0.3, recall=0.2)
    said: list[str] = []
    failures = make_runs([done, *runs], 2, said.append)
    assert said[0] == "4 runs, 1 of them finished before"
    assert not (done.folder / "made").exists()
    assert (runs[0].folder / "made").read_text("utf-8") == " ".join(runs[0].words)
    assert set(failures) == {runs[1].folder, runs[2].folder}
    assert failures[runs[1].folder] == "exit status 1, failed: the disk is full"
    assert failures[runs[2].folder].startswith("exit status 3, see ")


def test_a_signal_reaches_a_run_once_so_that_it_leaves_a_checkpoint(
    runs: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that shared the terminal's group would get Ctrl-C as well, and end at once."""
    (tmp_path / "train.py").write_text(STOPPED_TRAIN, "utf-8")
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        make_runs(runs[:1], 1, lambda _: None)
    assert (runs[0].folder / "stopped").read_text("utf-8") == f"[{int(signal.SIGTERM)}]"
    assert int((runs[0].folder / "group").read_text("utf-8")) != os.getpgid(0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_folder_with_another_configuration_is_not_taken(
    runs: list[PlannedRun], finish_run: Callable[..., None]
) -> None:
    run = runs[0]
    assert not is_finished(run)
    finish_run(run, top1=0.3, recall=0.2)
    assert is_finished(run)
    other = replace(run, config=replace(run.config, batch_size=16))
    with pytest.raises(ValueError, match=r"(?s)another configuration.*batch_size: was 32, now 16"):
        is_finished(other)


def test_a_finished_run_is_read_back(
    runs: list[PlannedRun], finish_run: Callable[..., None]
) -> None:
    run = runs[1]
    finish_run(run, top1=0.3, recall=0.2, step_s=0.25)
    read = read_run(run)
    assert read.seconds == pytest.approx(0.25 * 20)
    assert read.scores["top-1"].value == 0.3
    assert read.scores["mean recall"].value == pytest.approx(0.2)
    assert read.scores["mean recall"].chance == pytest.approx(0.16 / 3)
    assert [name for name, score in read.scores.items() if score.is_main] == [
        "top-1",
        "mean recall",
    ]
    ((_, a_pair),) = flops_of(run.config)
    curve = read.curves["training loss"]
    np.testing.assert_allclose(curve.flops, curve.samples * a_pair)
    np.testing.assert_allclose(curve.seconds, curve.samples / 32 * 0.25)
    assert curve.samples[-1] == run.samples
    assert list(read.curves) == ["training loss"]


def test_scores_on_the_way_make_curves(
    runs: list[PlannedRun], finish_run: Callable[..., None]
) -> None:
    run = runs[1]
    finish_run(run, top1=0.3, recall=0.2, step_s=0.25)
    evaluation = json.loads((run.folder / "evaluation.json").read_text("utf-8"))
    lines = []
    for samples, top1 in ((320, 0.1), (640, 0.3)):
        zero_shot = [{**evaluation["zero_shot"][0], "acc1": top1}]
        lines.append(json.dumps({**evaluation, "samples": samples, "zero_shot": zero_shot}))
    (run.folder / "evaluations.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    curves = read_run(run).curves
    assert list(curves) == ["training loss", "top-1", "mean recall"]
    assert curves["top-1"].samples.tolist() == [320, 640]
    assert curves["top-1"].values.tolist() == [0.1, 0.3]
    np.testing.assert_allclose(curves["top-1"].seconds, [2.5, 5.0])


def test_probes_are_scores_too() -> None:
    probe = {"dataset": "a", "acc1": 0.5, "chance": 0.1}
    sugar = {"dataset": "b", "macro": 0.7, "chance": 0.5}
    found = figures_of(
        {"zero_shot": [], "retrieval": [], "linear_probe": [probe], "sugarcrepe": [sugar]}
    )
    assert {name: score.value for name, score in found.items()} == {
        "linear probe": 0.5,
        "SugarCrepe": 0.7,
    }
    two = figures_of(
        {"zero_shot": [], "retrieval": [], "linear_probe": [probe, {**probe, "dataset": "c"}]}
    )
    assert list(two) == ["linear probe, a", "linear probe, c"]
