"""Tensors in a safetensors file that others may read as far as the umask lets them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file.

    safetensors gives its files to their owner alone (mode 0600), which keeps a run's weights from
    the group that trains it.

    Args:
        tensors: by name; none may share memory with another.
        path: the file.
        metadata: stored in its header.

    Raises:
        OSError: it cannot be written.
        SafetensorError: the same, or the tensors cannot be stored.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)
