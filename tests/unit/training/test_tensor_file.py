"""Weights are as readable as the umask says."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tessera.training.tensor_file import save_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    path, before = tmp_path / "a.safetensors", os.umask(umask)
    try:
        save_tensors({"a": torch.arange(3)}, path, {"made": "by hand"})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with safe_open(path, "pt") as stored:
        assert stored.metadata() == {"made": "by hand"}
        assert stored.get_tensor("a").tolist() == [0, 1, 2]
