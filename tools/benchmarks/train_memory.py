"""The highest memory use of a stretch of work: of the GPU, or of this process."""

from __future__ import annotations

from pathlib import Path

import torch

_SELF = Path("/proc/self")


def forget_peak(device: str) -> None:
    """Begin a new stretch."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # proc(5): 5 sets the peak resident set size back to the present one.
        (_SELF / "clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: str) -> int:
    """Bytes at the highest point since `forget_peak`: allocated on the GPU, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    for line in (_SELF / "status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_SELF / 'status'} names no VmHWM")
