"""What `precision` means for a run, and that it is kept."""

from __future__ import annotations

import pytest
import torch

from tessera.training.precision import TYPES, choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def processor(monkeypatch: pytest.MonkeyPatch, **units: bool) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"cpu_name": "bf16", **units})


@pytest.mark.parametrize("unit", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_takes_bfloat16_where_the_processor_multiplies_it_and_the_model_is_wide(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, **{unit: True})
    assert choose_precision("auto", CPU, 768) == "bfloat16"
    assert choose_precision("auto", CPU, 384) == "bfloat16"
    assert choose_precision("auto", CPU, 128) == "float32", "the demo's model would lose"
    processor(monkeypatch, **{unit: False, "avx512_f": True})
    assert choose_precision("auto", CPU, 768) == "float32"


def test_a_gpu_computes_in_bfloat16_and_what_is_asked_for_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor(monkeypatch)
    assert choose_precision("auto", CUDA, 128) == "bfloat16"
    for asked in TYPES:
        assert choose_precision(asked, CUDA, 768) == asked
        assert choose_precision(asked, CPU, 768) == asked


def test_this_processor_answers() -> None:
    assert choose_precision("auto", CPU, 768) in ("float32", "bfloat16")
