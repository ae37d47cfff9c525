"""Where a loader decodes whose device was left open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.pipeline import LoaderConfig, open_evaluation_loader, open_loader
from tessera.pipeline.decode_device import (
    DecodeDevice,
    choose_device,
    probe_device,
    probe_pictures,
    settle_device,
)
from tessera.pipeline.decoding.gpu_trial import Trial, TrialPictures, TrialSettings
from tessera.pipeline.decoding.jpeg_walk import walk_jpeg
from tessera.pipeline.index import build_index
from tessera.pipeline.index.dataset import Dataset, open_dataset
from tests.conftest import write_tar
from tests.decoder_pictures import encode, photo, with_orientation

CONFIG = LoaderConfig(batch_size=16, image_size=32, patch_size=8, context_length=24, num_threads=1)
SOUND = Trial(graph="whole", num_pictures=50, gpu_rate=9000.0, cpu_rate=4000.0)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Many like pictures and, anywhere among them, some that a decoder may be wrong on."""
    folder = tmp_path_factory.mktemp("many")
    files = [(f"{n:03}.jpg", encode(photo(60, 50, seed=n % 7))) for n in range(250)]
    files[111] = ("111.jpg", encode(photo(400, 300)))
    files[222] = ("222.jpg", encode(photo(9, 8)))
    files[40] = ("040.png", encode(photo(60, 50), "PNG"))
    files[200] = ("200.jpg", with_orientation(encode(photo(60, 50)), 6))
    members = [
        member
        for name, data in files
        for member in ((name, data), (name[:3] + ".txt", b"a picture of something"))
    ]
    write_tar(folder / "00000.tar", members)
    build_index([folder / "00000.tar"], folder / "index")
    return open_dataset(folder / "index")


@pytest.fixture
def imagined_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


class Probe:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: Trial) -> None:
        self.answer = answer
        self.asked: list[tuple[TrialPictures, TrialSettings]] = []

    def __call__(self, pictures: TrialPictures, settings: TrialSettings) -> Trial:
        self.asked.append((pictures, settings))
        return self.answer


def test_the_faster_decoder_is_taken() -> None:
    assert choose_device([SOUND]) == DecodeDevice(
        device="cuda", graph="whole", reason=choose_device([SOUND]).reason
    )
    slower = replace(SOUND, gpu_rate=3000.0)
    assert choose_device([slower]).device == "cpu"
    assert choose_device([slower], by_speed=False).device == "cuda"
    assert "3,000" in choose_device([slower]).reason


def test_a_decoder_with_a_fault_is_not_taken_however_fast() -> None:
    faulty = replace(SOUND, fault="window: the process ended by SIGSEGV")
    for by_speed in (True, False):
        chosen = choose_device([faulty], by_speed=by_speed)
        assert chosen.device == "cpu"
        assert "SIGSEGV" in chosen.reason


def test_all_machines_of_a_run_decode_alike() -> None:
    assert choose_device([SOUND, replace(SOUND, graph="window")]).device == "cpu"
    assert choose_device([SOUND, replace(SOUND, fault="whole: no answer")]).device == "cpu"
    # The ranks of a slow machine keep the others waiting.
    assert choose_device([SOUND, replace(SOUND, gpu_rate=3500.0)]).device == "cpu"
    assert choose_device([SOUND, replace(SOUND, gpu_rate=4500.0)]).device == "cuda"


def test_a_trial_gets_the_pictures_that_matter(many: Dataset) -> None:
    pictures = probe_pictures(many, CONFIG)
    layouts = [walk_jpeg(data) for data in pictures.encoded if data[:2] == b"\xff\xd8"]
    assert any(data.startswith(b"\x89PNG") for data in pictures.encoded)
    assert 6 in {layout.orientation for layout in layouts}
    assert {400, 9} <= {layout.width for layout in layouts}
    assert 40 <= pictures.num_typical <= len(pictures.encoded) < 100
    assert pictures.windows.shape == (len(pictures.encoded), 4)


def test_the_trial_decodes_as_the_run_does(many: Dataset) -> None:
    probe = Probe(SOUND)
    config = replace(CONFIG, device="cuda:1", batch_size=64, world_size=4, num_threads=3)
    assert probe_device(many, config, probe=probe) == SOUND
    (settings,) = (settings for _, settings in probe.asked)
    assert (settings.device, settings.batch_size, settings.num_threads) == ("cuda:1", 16, 3)
    assert settings.image_size == 32


def test_pictures_that_have_gone_are_not_tried(many: Dataset, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.jpg", encode(photo(60, 50))), ("1.txt", b"a picture")])
    build_index([tmp_path / "a.tar"], tmp_path / "index")
    dataset = open_dataset(tmp_path / "index")
    (tmp_path / "a.tar").unlink()
    assert probe_pictures(dataset, CONFIG).encoded == []


@pytest.mark.usefixtures("imagined_gpu")
def test_auto_follows_the_trial_and_hands_batches_out_on_the_gpu(
    many: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    found = settle_device(many, CONFIG, probe=Probe(SOUND))
    assert (found.device, found.dali_graph, found.model_device) == ("cuda", "whole", "cuda")
    assert "9,000" in caplog.text
    faulty = Probe(replace(SOUND, fault="window: no answer in 120 s"))
    found = settle_device(many, CONFIG, probe=faulty)
    assert (found.device, found.model_device) == ("cpu", "cuda")
    assert "no answer in 120 s" in caplog.text
    assert len([r for r in caplog.records if "decoded on" in r.message]) == 2


@pytest.mark.usefixtures("imagined_gpu")
@pytest.mark.parametrize("named", [{"device": "cpu"}, {"device": "cuda"}, {"decoder": "turbo"}])
def test_no_trial_where_nothing_was_left_open(many: Dataset, named: dict[str, Any]) -> None:
    probe = Probe(SOUND)
    found = settle_device(many, replace(CONFIG, **named), probe=probe)
    assert found.device == named.get("device", "cpu")
    assert probe.asked == []


def test_without_a_gpu_auto_is_the_cpu_at_no_cost(many: Dataset) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    probe = Probe(SOUND)
    assert settle_device(many, CONFIG, probe=probe).device == "cpu"
    assert probe.asked == []
    with open_loader(many.index.directory, CONFIG) as loader:
        assert loader.config.device == "cpu"


@pytest.mark.usefixtures("imagined_gpu")
def test_evaluation_decodes_on_the_cpu_everywhere(many: Dataset) -> None:
    with open_evaluation_loader(many.index.directory, CONFIG) as loader:
        assert loader.config.device == "cpu"


def test_a_choice_comes_back_from_a_checkpoint() -> None:
    chosen = DecodeDevice(device="cuda", graph="whole")
    found = DecodeDevice.restored({"decoding": chosen.stored()})
    assert (found.device, found.graph) == ("cuda", "whole")
    assert DecodeDevice.restored({"decoder": "dali-cuda"}).device == "cuda"
    assert DecodeDevice.restored({"decoder": "turbo"}).device == "cpu"
    assert DecodeDevice.restored({}).device == "cpu"
