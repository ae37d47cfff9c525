"""The highest memory use of a stretch of work: of the GPU, or of this process."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_SELF = Path("/proc/self")


def forget_peak(device: str) -> int:
    """Begin a new stretch; returns the bytes in use now."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # proc(5): 5 sets the peak resident set size back to the present one.
    (_SELF / "clear_refs").write_text("5", encoding="ascii")
    return psutil.Process().memory_info().rss


def peak_memory(device: str) -> int:
    """Bytes at the highest point since `forget_peak`: allocated on the GPU, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = (_SELF / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
