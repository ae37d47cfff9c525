"""Every recipe's miniature runs to its end, through the program that a person calls."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import train
from tessera.recipes import RECIPES, find_recipe
from tessera.training.command_line import parse
from tessera.training.metrics import read_records
from tessera.training.stages import architecture, stages_of

VARIANTS = (
    ("cluster-rgb-03", "--mask.mode", "fill"),
    ("cluster-rgb-05", "--mask.mode", "fill", "--mask.threshold", "0.5"),
    ("cluster-rgb-03", "--mask.mode", "threshold"),
    ("flip-50", "--context-length", "8", "--data.text-reduction", "random"),
    ("cluster-embedding", "--loss.kind", "fastclip_v3", "--accumulation", "2"),
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that the pictures are drawn once."""
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(autouse=True)
def _here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    # The run must not take the root logger from pytest.
    monkeypatch.setattr(train, "set_up_logging", lambda *_args, **_options: None)


@pytest.mark.parametrize("words", [*((name,) for name in RECIPES), *VARIANTS], ids=" ".join)
def test_the_miniature_runs_to_its_end(words: tuple[str, ...], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    argv = [*words, "--mini", "--run-dir", str(run_dir), "--num-threads", "1", "--device", "cpu"]
    config = parse(argv, lambda name: find_recipe(name).build(), "").config
    assert train.main(argv) == 0
    records = read_records(run_dir / "metrics.jsonl")
    stages = stages_of(config)
    for stage in stages:
        steps = [record for record in records if record.stage == stage.number]
        assert len(steps) == stage.config.num_steps
        assert all(math.isfinite(record.loss) for record in steps)
        peak = stage.config.optim.peak(stage.config.batch_size)
        assert peak / 2 < max(record.lr for record in steps) <= peak * (1 + 1e-9)
    scores = json.loads((run_dir / "evaluation.json").read_text())
    assert scores["step"] == len(records)
    assert {row["n"] for row in scores["scores"] if row["metric"] == "acc1"} == {64}
    newest = max((run_dir / "checkpoints").iterdir())
    weights = load_file(newest / "open_clip_model.safetensors")
    model = architecture(stages[-1].config)
    assert len(weights["visual.positional_embedding"]) == model.vision.num_patches + 1
    if model.has_text_tower:
        assert len(weights["positional_embedding"]) == model.text.context_length


def test_without_its_data_a_recipe_names_the_way_to_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main(["cluster-rgb-03"]) == 2
    message = capsys.readouterr().err
    assert "tools/download_cc12m.sh" in message
    assert "--mini" in message


def test_of_a_mixture_the_set_that_is_missing_is_named_with_the_way_to_it(
    coloured_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.train", f"{coloured_index}=1", "data/cc12m/index=2"]
    assert train.main(["cluster-rgb-03", *words, "--run-dir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "there is no index at data/cc12m/index" in message
    assert str(coloured_index) not in message


def test_the_list_names_every_recipe() -> None:
    command = [sys.executable, train.__file__, "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
