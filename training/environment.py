"""What a measured figure depends on: machine and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "nvidia-dali-cuda130", "open_clip_torch", "pyarrow", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processes_here() -> int:
    """Processes of this run on this machine, as torchrun tells."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def device_words(device: torch.device) -> str:
    """The device as a person would name it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"{num_cores()} cores of {_processor()}"


def machine(device: torch.device) -> dict[str, object]:
    """Machine and versions, for the record of a benchmark."""
    import torch

    return {
        "device": device_words(device),
        "num_cores": num_cores(),
        "torch_threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
        **versions(),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
