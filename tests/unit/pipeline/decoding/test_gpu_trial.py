"""The trial of the GPU decoder: whatever its process does is an answer."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tessera.pipeline.decoding import Decoded, Decoder, gpu_trial, open_decoder
from tessera.pipeline.decoding.gpu_trial import (
    TrialPictures,
    TrialSettings,
    examine,
    find_graph,
    try_graph,
)
from tests.decoder_pictures import encode, photo, with_orientation

FILES = [
    *(encode(photo(200 + n, 150, seed=n)) for n in range(4)),
    with_orientation(encode(photo(150, 200, seed=5)), 6),
    encode(photo(200, 150, seed=6), "PNG"),
]
PICTURES = TrialPictures(
    encoded=FILES, windows=np.array([(5, 9, 130, 140)] * len(FILES), dtype=np.int32), num_typical=4
)
SETTINGS = TrialSettings(
    device="cpu", cpu_decoder="auto", image_size=64, batch_size=4, num_threads=1, timed_s=0.0
)
SOUND = {"fault": "", "hung": False, "num_pictures": 6, "gpu_rate": 9000.0, "cpu_rate": 4000.0}


def child(code: str) -> tuple[str, ...]:
    """A child process that runs other code in the trial's place."""
    return (sys.executable, "-c", f"import json, os, signal, sys, time\n{code}")


def test_a_sound_decoder_passes_in_a_process_of_its_own() -> None:
    trial = find_graph(PICTURES, SETTINGS)
    assert trial.fault == ""
    assert trial.graph == "window"
    assert trial.num_pictures == len(FILES)
    assert trial.gpu_rate > 0
    assert trial.cpu_rate > 0


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("sys.exit('out of memory on the device')", "status 1: out of memory on the device"),
        ("print('no JSON')", "status 0"),
        ("print('{\"other\": 1}')", "status 0"),
    ],
)
def test_a_process_that_dies_is_a_fault(code: str, told: str) -> None:
    trial = try_graph("window", PICTURES, SETTINGS, command=child(code))
    assert told in trial.fault
    assert not trial.hung


def test_a_process_that_hangs_is_killed_and_tried_no_more() -> None:
    trial = find_graph(PICTURES, SETTINGS, command=child("time.sleep(600)"), timeout_s=0.5)
    assert trial.hung
    assert trial.fault.count("no answer") == 1


def test_the_whole_picture_is_tried_where_the_window_ends_the_process() -> None:
    code = f"""
if json.load(sys.stdin)["graph"].startswith("window"):
    os.kill(os.getpid(), signal.SIGSEGV)
print({json.dumps(json.dumps(SOUND))})
"""
    trial = find_graph(PICTURES, SETTINGS, command=child(code))
    assert trial.fault == ""
    assert trial.graph == "whole"
    assert trial.gpu_rate == SOUND["gpu_rate"]


def test_the_faults_of_all_graphs_are_told() -> None:
    trial = find_graph(PICTURES, SETTINGS, command=child("sys.exit('no device')"))
    ways = [a + b + c for a in ("window", "whole") for b in ("", "-repeat") for c in ("", "-cuda")]
    for graph in ways:
        assert f"{graph}: " in trial.fault


def test_without_pictures_there_is_nothing_to_try() -> None:
    nothing = TrialPictures(encoded=[], windows=np.empty((0, 4), np.int32), num_typical=0)
    assert "could be read" in find_graph(nothing, SETTINGS).fault


class Wrong:
    """Decodes as another decoder, then spoils one picture of the call."""

    name = "wrong"

    def __init__(self, decoder: Decoder, shift: int) -> None:
        self._decoder, self._shift = decoder, shift

    def decode(
        self, encoded: list[bytes], windows: NDArray[np.int32], plain: Any = None
    ) -> Decoded:
        decoded = self._decoder.decode(encoded, windows)
        decoded.images[0] = decoded.images[0].roll(self._shift, dims=0)
        return decoded


def spoil(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    def opened(kind: Any, **options: Any) -> Any:
        decoder = open_decoder(kind, **options)
        return Wrong(decoder, shift) if kind == "dali" else decoder

    monkeypatch.setattr(gpu_trial, "open_decoder", opened)


@pytest.mark.parametrize(("shift", "passes"), [(0, True), (3, False)])
def test_one_wrong_picture_of_a_batch_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, shift: int, passes: bool
) -> None:
    spoil(monkeypatch, shift)
    trial = examine("window", PICTURES, SETTINGS)
    assert (trial.fault == "") == passes
    if not passes:
        assert "differ from Pillow's" in trial.fault


def test_a_graph_that_fails_is_a_fault_though_its_pictures_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nvidia.dali.pipeline import Pipeline

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error: nvImageCodec failure: '#8'")

    monkeypatch.setattr(Pipeline, "run", fails)
    assert "#8" in examine("window", PICTURES, SETTINGS).fault


def test_pictures_that_dali_never_gets_prove_nothing() -> None:
    png = encode(photo(90, 90), "PNG")
    windows = np.array([(0, 0, 90, 90)], dtype=np.int32)
    trial = examine(
        "window", TrialPictures(encoded=[png], windows=windows, num_typical=1), SETTINGS
    )
    assert "plain JPEG" in trial.fault


def test_a_picture_that_neither_decodes_is_no_fault() -> None:
    pictures = TrialPictures(
        encoded=[FILES[0], FILES[1][:3000]], windows=PICTURES.windows[:2], num_typical=2
    )
    trial = examine("window", pictures, SETTINGS)
    assert trial.fault == ""
    assert isinstance(trial.gpu_rate, float)
    assert torch.isfinite(torch.tensor(trial.cpu_rate))
