"""Models in local folders, opened through transformers. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import torch

from pipeline.storage import head_tail_crc32


def open_model(folder: Path, auto_class: str, device: torch.device) -> Any:
    """Open a model in the precision it is stored in.

    Args:
        folder: as `save_pretrained` writes it.
        auto_class: `AutoModelForCausalLM` or `AutoModelForImageTextToText`.
        device: where it shall run.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: transformers is missing, cannot open the model, or weights are missing in it.
    """
    model, info = _open(
        folder, auto_class, dtype="auto", output_loading_info=True, local_files_only=True
    )
    # transformers would draw such weights at random and only warn.
    absent = sorted([*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])])
    if absent:
        msg = f"{folder} lacks {len(absent)} weights of its model, such as {absent[0]}"
        raise ValueError(f"{msg}; fetch it again, or name a folder that {auto_class} can open")
    return model.to(device).eval()


def open_part(folder: Path, auto_class: str) -> Any:
    """Open a tokenizer (`AutoTokenizer`) or a processor (`AutoProcessor`).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: transformers is missing or cannot open it.
    """
    return _open(folder, auto_class, local_files_only=True)


def model_identity(folder: Path) -> dict[str, str]:
    """Which model lies in a folder.

    Returns:
        Its name, its architecture, and a SHA-256 over name, size and CRC-32 of the first and last
        64 KiB of each file: two sets of weights differ in their last bytes.
    """
    _check_folder(folder)
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


def _open(folder: Path, auto_class: str, **options: Any) -> Any:
    _check_folder(folder)
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise ValueError("transformers is not installed: pip install transformers") from None
    try:
        return getattr(transformers, auto_class).from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0] or repr(error)
        raise ValueError(f"{auto_class} of transformers cannot open {folder}: {reason}") from error


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"there is no model in {folder} (no config.json) and nothing is downloaded here; "
            f"fetch one before with `hf download ORGANISATION/MODEL --local-dir {folder}`"
        )
