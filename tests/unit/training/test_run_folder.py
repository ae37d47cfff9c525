"""A run folder belongs to one configuration and one process at a time."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.training.run_folder import RunFolder, newest_checkpoint
from tests.unit.training.test_config import small


def test_the_same_configuration_may_go_on(tmp_path: Path) -> None:
    for config in (small(), replace(small(), log_every=3)):
        folder = RunFolder(tmp_path / "run")
        folder.claim(config)
        folder.close()


def test_another_configuration_is_refused_by_field(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(small())
    (folder.checkpoints / "step_000000003").mkdir(parents=True)
    with pytest.raises(ValueError, match="seed: was 0, now 1"):
        folder.claim(replace(small(), seed=1))
    folder.claim(replace(small(), seed=1), restart=True)


def test_two_processes_cannot_share_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(small())
    with pytest.raises(ValueError, match="another process"):
        RunFolder(tmp_path).claim(small(), restart=True)
    folder.close()
    RunFolder(tmp_path).claim(small())


def test_only_to_name_its_paths_touches_nothing(tmp_path: Path) -> None:
    """Ranks other than 0 may not even see the folder."""
    folder = RunFolder(tmp_path / "run")
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    folder = RunFolder(tmp_path)
    folder.claim(small())
    folder.clear()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", "notes.txt"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="--run-dir"):
        RunFolder(tmp_path / "run").claim(small())


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="--run-dir"):
        RunFolder(tmp_path / "run").claim(small())


def test_the_newest_checkpoint_is_found_from_three_folders(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (3, 12):
        (run / "checkpoints" / f"step_{step:09d}").mkdir(parents=True)
    newest = run / "checkpoints" / "step_000000012"
    for place in (run, run / "checkpoints", newest):
        assert newest_checkpoint(place) == newest


def test_a_run_without_a_checkpoint_is_told_from_a_folder_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").touch()
    (tmp_path / "later" / "checkpoints").mkdir(parents=True)
    for name in ("run", "later", "later/checkpoints"):
        with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
            newest_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no run and no checkpoint"):
        newest_checkpoint(tmp_path / "nowhere")
