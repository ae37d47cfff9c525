"""A run folder belongs to one configuration and one process at a time."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.training.test_config import small
from training.run_folder import RunFolder


def test_the_same_configuration_may_go_on(tmp_path: Path) -> None:
    for config in (small(), replace(small(), log_every=3)):
        folder = RunFolder(tmp_path / "run")
        folder.claim(config)
        folder.close()


def test_another_configuration_is_refused_by_field(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(small())
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
