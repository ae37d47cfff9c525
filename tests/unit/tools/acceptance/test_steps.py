"""The steps of a visit."""

from __future__ import annotations

from pathlib import Path

from tools.acceptance.steps import FULL, steps


def test_the_sanitizer_sees_every_mask_kernel_and_each_tensor_by_itself() -> None:
    found = {step.name: step for step in steps(FULL, "", Path("scratch"))}["sanitizer"]
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in found.command
    assert found.command.index("env") < found.command.index("compute-sanitizer")
    assert {"similarity", "packing"} <= set(found.command[-1].split())
