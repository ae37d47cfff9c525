"""The device of GPU tests.

TESSERA_GPU_TESTS_ON_CPU=1 runs those that ask for `device` on the CPU: nothing is proven then but
that the tests themselves run.
"""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """CUDA, or the CPU where a person asked to try the tests there."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TESSERA_GPU_TESTS_ON_CPU") == "1":
        return torch.device("cpu")
    pytest.skip("needs a CUDA device")
