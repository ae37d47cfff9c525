"""Where the ranks of a run decode: as asked for, as the run did before, or as a trial shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.model import build_clip
from tessera.pipeline import LoaderConfig
from tessera.pipeline.decoding.gpu_trial import Trial, TrialPictures, TrialSettings
from tessera.training.checkpoint import Checkpoint
from tessera.training.config import DataConfig, TrainConfig, to_json
from tessera.training.config_differences import differences
from tessera.training.decoding import settle_decoding
from tessera.training.distributed import Ranks
from tessera.training.opening import open_session
from tessera.training.run_folder import RunFolder
from tessera.training.run_loader import loader_config
from tessera.training.timeline import Timeline
from tests.unit.training.test_config import small

GPU = torch.device("cuda", 1)
SOUND = Trial(graph="whole", num_pictures=50, gpu_rate=9000.0, cpu_rate=4000.0)
FAULTY = replace(SOUND, fault="window: the process ended by SIGSEGV")


@pytest.fixture
def imagined_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


class Several(Ranks):
    """A rank of a run on two machines, as far as choosing goes: what it gathers is given."""

    gathered: list[Any]

    def gather(self, value: Any) -> list[Any]:
        self.gathered = [value]
        return [SOUND, None, replace(SOUND, gpu_rate=5000.0), None]


def run_of(index: Path, **data: Any) -> TrainConfig:
    return replace(small(), data=DataConfig(train=str(index), num_threads=1, **data))


def share_of(config: TrainConfig) -> LoaderConfig:
    return loader_config(config, build_clip(config.model).config)


def settled(
    config: TrainConfig,
    answer: Trial | None,
    found: dict[str, Any] | None = None,
    device: torch.device = GPU,
    ranks: Ranks | None = None,
) -> LoaderConfig:
    """None as the answer: a trial would be a mistake."""

    def probe(_: TrialPictures, settings: TrialSettings) -> Trial:
        assert answer is not None
        assert settings.device == str(device)
        return answer

    step = Checkpoint(step=3, parts={}, architecture={}, state=found) if found else None
    return settle_decoding(config, share_of(config), ranks or Ranks(), device, step, probe)


@pytest.mark.usefixtures("imagined_gpu")
def test_a_fresh_run_follows_the_trial(
    coloured_index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = run_of(coloured_index)
    assert run.data.device == "auto"
    found = settled(run, SOUND)
    assert (found.device, found.dali_graph) == ("cuda:1", "whole")
    assert settled(run, replace(SOUND, gpu_rate=1.0)).device == "cpu"
    assert settled(run, FAULTY).device == "cpu"
    told = [record.message for record in caplog.records if "decoded on" in record.message]
    assert len(told) == 3
    assert "SIGSEGV" in told[2]


@pytest.mark.usefixtures("imagined_gpu")
@pytest.mark.parametrize(
    ("state", "device", "graph"),
    [
        ({"decoding": {"device": "cuda", "graph": "whole"}}, "cuda:1", "whole"),
        ({"decoding": {"device": "cpu", "graph": "window"}}, "cpu", "window"),
        ({"decoder": "turbo"}, "cpu", "window"),
        ({"decoder": "dali-cuda"}, "cuda:1", "window"),
    ],
)
def test_a_resumed_run_keeps_its_choice_without_a_trial(
    coloured_index: Path,
    caplog: pytest.LogCaptureFixture,
    state: dict[str, Any],
    device: str,
    graph: str,
) -> None:
    caplog.set_level("INFO")
    found = settled(run_of(coloured_index), None, state)
    assert (found.device, found.dali_graph) == (device, graph)
    assert "as this run decoded before" in caplog.text


@pytest.mark.usefixtures("imagined_gpu")
def test_a_device_that_is_named_is_taken(coloured_index: Path) -> None:
    kept = {"decoding": {"device": "cuda", "graph": "whole"}}
    assert settled(run_of(coloured_index, device="cpu"), None, kept).device == "cpu"
    on_gpu = run_of(coloured_index, device="cuda")
    slow = settled(on_gpu, replace(SOUND, gpu_rate=1.0))
    assert (slow.device, slow.dali_graph) == ("cuda:1", "whole")
    assert settled(on_gpu, None, kept).dali_graph == "whole"
    with pytest.raises(ValueError, match=r"SIGSEGV.*--data\.device auto"):
        settled(on_gpu, FAULTY)


def test_without_a_gpu_there_is_no_trial(coloured_index: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    here = torch.device("cpu")
    assert settled(run_of(coloured_index), None, device=here).device == "cpu"
    with pytest.raises(ValueError, match="no GPU here"):
        settled(run_of(coloured_index, device="cuda"), None, device=here)


@pytest.mark.usefixtures("imagined_gpu")
def test_one_process_of_a_machine_tries_for_all(coloured_index: Path) -> None:
    first, second = Several(world_size=4), Several(world_size=4, rank=1, local_rank=1)
    run = run_of(coloured_index)
    assert settled(run, SOUND, ranks=first).device == "cuda:1"
    assert first.gathered == [SOUND]
    assert settled(run, None, ranks=second).device == "cuda:1"
    assert second.gathered == [None]


def test_a_run_may_go_on_with_another_device(coloured_index: Path) -> None:
    before, now = (to_json(run_of(coloured_index, device=name)) for name in ("cpu", "auto"))
    assert differences(before, now) == []


def test_a_checkpoint_keeps_the_choice(coloured_index: Path, tmp_path: Path) -> None:
    config = replace(
        run_of(coloured_index), run_dir=str(tmp_path / "run"), device="cpu", batch_size=16,
        total_samples=64, model="tessera-demo",
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    folder.claim(config)
    session = open_session(config, folder, Timeline())
    try:
        session.save()
        assert session.writer is not None
        session.writer.wait()
    finally:
        session.close()
        folder.close()
    (state,) = (tmp_path / "run" / "checkpoints").glob("*/state.json")
    assert json.loads(state.read_text())["decoding"] == {"device": "cpu", "graph": "window"}
