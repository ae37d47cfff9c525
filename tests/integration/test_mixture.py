"""Training on several indexes with weights: exact on any ranks and after any resume."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.pipeline import LoaderConfig, open_loader
from tessera.pipeline.index import ScanOptions, build_index, open_index
from tessera.pipeline.index.selections import write_selection
from tessera.pipeline.masking import MaskConfig
from tessera.training.config import DataConfig
from tessera.training.dry_run import DryRun
from tessera.training.sample_ids import read_sample_ids
from tests.conftest import sample_members, write_tar
from tests.integration.test_distributed_train import BATCH, finish, kill_at, losses, start, training
from tests.unit.training.test_config import small

CONFIG = LoaderConfig(
    batch_size=24, image_size=32, patch_size=8, context_length=24, mask=MaskConfig(), num_threads=1
)


@pytest.fixture(scope="module")
def other_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 further pictures, whose keys begin at 0 as those of `coloured_index` do."""
    folder = tmp_path_factory.mktemp("other")
    write_tar(folder / "0.tar", [m for n in range(40) for m in sample_members(n)])
    build_index([folder / "0.tar"], folder / "index", options=ScanOptions(captions="json:captions"))
    return folder / "index"


def test_an_epoch_visits_each_set_as_often_as_its_weight_says(
    coloured_index: Path, other_index: Path
) -> None:
    with open_loader([f"{coloured_index}=0.5", (other_index, 1.2)], CONFIG) as loader:
        assert loader.dataset.num_samples == 48 + 48
        batches = [next(loader) for _ in range(8)]  # two epochs
        keys = loader.index.keys(batches[0].sample_ids.tolist())
        assert loader.index.num_samples == 136
    for batch in batches:
        batch.check()
        assert len(batch.sample_ids.unique()) == 24
    ids = torch.cat([batch.sample_ids for batch in batches])
    first, second = ids[ids < 96], ids[ids >= 96]
    assert Counter(first.tolist()) == Counter(range(96))
    assert len(second) == 96
    assert set(Counter(second.tolist()).values()) <= {2, 3}
    one, two = open_index(coloured_index), open_index(other_index)
    for sample_id, key in zip(batches[0].sample_ids.tolist(), keys, strict=True):
        owner, row = (one, sample_id) if sample_id < 96 else (two, sample_id - 96)
        assert owner.keys([row]) == [key]


@pytest.mark.parametrize("order", ["global", "window"])
def test_ranks_and_a_resume_give_the_bytes_of_an_unbroken_run(
    coloured_index: Path, other_index: Path, order: str
) -> None:
    config = replace(CONFIG, order=order, window_shards=1)
    sets = [f"{coloured_index}=2", f"{other_index}=1"]
    with open_loader(sets, config) as loader:
        whole = [next(loader) for _ in range(12)]
    with open_loader(sets, config) as loader:
        loader.seek(7)
        again = next(loader)
    for name, tensor in whole[7].tensors().items():
        assert torch.equal(tensor, again.tensors()[name])
    for world_size in (2, 4):
        parts = []
        for rank in range(world_size):
            with open_loader(sets, replace(config, rank=rank, world_size=world_size)) as loader:
                parts.append(loader.assemble(7))
        for name in ("patches", "positions", "tokens", "sample_ids"):
            joined = torch.cat([part.tensors()[name] for part in parts])
            assert torch.equal(joined, whole[7].tensors()[name])


def test_a_single_set_is_what_it_is_without_a_list(coloured_index: Path) -> None:
    batches = []
    for named in (coloured_index, [coloured_index], f"{coloured_index}=0.25", (coloured_index, 3)):
        with open_loader(named, CONFIG) as loader:
            batches.append(loader.assemble(5))
    for batch in batches[1:]:
        for name, tensor in batch.tensors().items():
            assert torch.equal(tensor, batches[0].tensors()[name])


def test_a_set_that_cannot_be_mixed_is_refused(coloured_index: Path, other_index: Path) -> None:
    write_selection(open_index(coloured_index), "few", np.arange(5, dtype=np.uint32), {})
    cases = {
        "share 96 samples": [coloured_index, coloured_index],
        "finite number above 0": [coloured_index, f"{other_index}=0"],
        "which has 5": [f"{coloured_index}@few=9", other_index],
        "no caption source 'rewritten'": [coloured_index, other_index],
        "at least one index": [],
    }
    for message, sets in cases.items():
        captions = ("rewritten",) if "rewritten" in message else ("caption",)
        with pytest.raises(ValueError, match=message):
            open_loader(sets, replace(CONFIG, captions=captions))


def test_a_dry_run_counts_epochs_of_the_mixture(coloured_index: Path, other_index: Path) -> None:
    sets = (f"{coloured_index}=0.5", str(other_index))
    config = replace(small(), data=DataConfig(train=sets), total_samples=880, batch_size=22)
    assert any("88 of 136 samples" in line for line in DryRun(config).lines(config))


def test_a_run_on_a_mixture_killed_inside_an_epoch_resumes_exactly(
    coloured_index: Path, other_index: Path, tmp_path: Path
) -> None:
    """An epoch of 96 and 20 visits ends inside step 8; the kill is before, and the end behind."""
    sets = ("--data.train", f"{coloured_index}=1", f"{other_index}=0.5")

    def command(name: str, num_ranks: int) -> list[str]:
        return training(coloured_index, tmp_path / name, num_ranks, *sets)

    finish(command("whole", 1))
    whole = losses(tmp_path / "whole")
    ids = read_sample_ids(tmp_path / "whole" / "sample_ids.jsonl")
    assert list(whole) == list(range(1, 13))
    epoch = [sample for step in range(1, 13) for sample in ids[step]][:116]
    assert Counter(sample < 96 for sample in epoch) == {True: 96, False: 20}
    assert len(set(epoch)) == 116
    assert all(len(ids[step]) == BATCH for step in ids)
    for name, num_ranks in (("one", 1), ("two", 2)):
        kill_at(start(command(name, num_ranks)), tmp_path / name, 5)
        assert max(losses(tmp_path / name)) < 12, "it was killed on the way"
        assert "checkpoint" in finish(command(name, num_ranks))
        assert read_sample_ids(tmp_path / name / "sample_ids.jsonl") == ids
    assert losses(tmp_path / "one") == whole
    assert losses(tmp_path / "two") == pytest.approx(whole, abs=1e-3)
