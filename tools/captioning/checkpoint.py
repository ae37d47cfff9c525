"""Which local model a tool uses, and where it runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import torch

from tessera.model.local_transformers import check_folder
from tessera.pipeline.storage import head_tail_crc32


def model_identity(folder: Path) -> dict[str, str]:
    """Which model lies in a folder.

    Returns:
        Its name, its architecture, and a SHA-256 over name, size and CRC-32 of the first and last
        64 KiB of each file: two sets of weights differ in their last bytes.
    """
    check_folder(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            crc = head_tail_crc32(str(path))
            digest.update(f"{path.name} {path.stat().st_size} {crc}\n".encode())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "name": folder.resolve().name,
        "architecture": ",".join(config.get("architectures") or ["unknown"]),
        "fingerprint": digest.hexdigest(),
    }


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r}: {error}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"--device {name}: torch sees {count} GPUs here; take auto or cpu")
    return device


def choose_dtype(
    precision: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> torch.dtype:
    """The torch dtype of that name; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, precision)
