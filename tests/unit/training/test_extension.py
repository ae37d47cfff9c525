"""A larger length extends a run where no step that was done would have been another one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.pipeline.masking import MaskConfig
from tessera.training.config import OptimConfig, StageConfig, TrainConfig, to_json
from tessera.training.run_folder import RunFolder
from tests.unit.training.test_config import small

CONSTANT = replace(small(), optim=OptimConfig(schedule="constant", warmup=0.1))


def run_on_disk(path: Path, config: TrainConfig, *, step: int) -> RunFolder:
    folder = RunFolder(path)
    folder.claim(config)
    (folder.checkpoints / f"step_{step:09d}").mkdir(parents=True)
    folder.evaluation.write_text("{}")
    folder.close()
    return RunFolder(path)


def longer(config: TrainConfig) -> TrainConfig:
    return replace(config, total_samples=config.total_samples * 2)


def test_a_constant_run_is_extended_and_keeps_its_warmup(tmp_path: Path) -> None:
    folder = run_on_disk(tmp_path, CONSTANT, step=10)
    claimed = folder.claim(longer(CONSTANT))
    assert claimed.total_samples == 2000
    assert claimed.optim.warmup_pairs(claimed.total_samples) == 100
    assert not folder.evaluation.exists(), "it is not finished any more"
    folder.close()
    again = RunFolder(tmp_path)
    assert again.claim(longer(CONSTANT)) == claimed, "the same command resumes it"
    again.close()
    assert RunFolder(tmp_path).claim(longer(longer(CONSTANT))).optim == claimed.optim


def test_a_cooldown_that_has_not_begun_moves_back(tmp_path: Path) -> None:
    optim = OptimConfig(schedule="cooldown", cooldown_samples=300)
    config = replace(small(), optim=optim)
    assert run_on_disk(tmp_path / "a", config, step=7).claim(longer(config)).total_samples == 2000
    with pytest.raises(ValueError, match=r"cooldown began at 700 pairs.*--init-from"):
        run_on_disk(tmp_path / "b", config, step=8).claim(longer(config))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (small(), "cosine"),
        (replace(CONSTANT, mask=MaskConfig(kind="cluster", embedding_last=1.0)), "embeddings"),
        (
            replace(CONSTANT, stages=(StageConfig(total_samples=100, optim=OptimConfig()),)),
            "several stages",
        ),
    ],
)
def test_what_cannot_be_extended_says_why_and_how_else(
    tmp_path: Path, config: TrainConfig, reason: str
) -> None:
    folder = run_on_disk(tmp_path, config, step=5)
    with pytest.raises(ValueError, match=rf"{reason}.*--init-from {tmp_path}"):
        folder.claim(longer(config))
    assert folder.evaluation.exists()


def test_a_shorter_run_and_other_fields_are_refused_as_ever(tmp_path: Path) -> None:
    folder = run_on_disk(tmp_path, CONSTANT, step=5)
    for other in (replace(CONSTANT, total_samples=500), replace(longer(CONSTANT), seed=1)):
        with pytest.raises(ValueError, match="another configuration"):
            folder.claim(other)


def test_a_start_that_failed_does_not_block_the_corrected_command(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(small())
    folder.metrics.touch()
    folder.log.write_text("it failed")
    folder.close()
    corrected = replace(small(), seed=1, batch_size=50)
    again = RunFolder(tmp_path)
    again.claim(corrected)
    assert json.loads(again.config.read_text())["batch_size"] == 50
    again.metrics.write_text("{}\n")
    with pytest.raises(ValueError, match="another configuration"):
        again.claim(small())


def test_a_run_of_an_older_edition_resumes(tmp_path: Path) -> None:
    """Its configuration lacks the fields that came since, and has its warm-up in pairs."""
    stored = to_json(CONSTANT)
    del stored["optim"]["warmup"], stored["optim"]["layer_rule"]
    stored["optim"]["warmup_samples"] = 100
    folder = run_on_disk(tmp_path, CONSTANT, step=5)
    folder.config.write_text(json.dumps(stored))
    assert folder.claim(CONSTANT) == CONSTANT
