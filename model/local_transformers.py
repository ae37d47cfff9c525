"""Models of transformers in local folders. Nothing is downloaded and no code of a folder runs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch


def open_model(
    folder: Path,
    auto_class: str,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    unused: tuple[str, ...] = (),
) -> Any:
    """Open a model from its safetensors files.

    Args:
        folder: as `save_pretrained` writes it.
        auto_class: such as `AutoModelForCausalLM`.
        device: where it shall run.
        dtype: precision of its weights; None takes the one they are stored in.
        unused: first parts of the names of weights that may be absent because nobody asks for
            what they compute.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: transformers is missing, cannot open the model, or weights are missing in it.
    """
    model, info = _open(
        folder,
        auto_class,
        dtype="auto" if dtype is None else dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    # transformers would draw such weights at random and only warn.
    absent = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    absent = sorted(name for name in absent if not name.startswith(unused))
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
    return _open(folder, auto_class)


def check_folder(folder: Path) -> None:
    """See that a folder holds a model.

    Raises:
        FileNotFoundError: it does not; the message says how to fetch one.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"there is no model in {folder} (no config.json) and nothing is downloaded here; "
            f"fetch one before with `hf download ORGANISATION/MODEL --local-dir {folder}`"
        )


def _open(folder: Path, auto_class: str, **options: Any) -> Any:
    check_folder(folder)
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise ValueError("transformers is not installed: pip install transformers") from None
    opened = getattr(transformers, auto_class)
    # Its own report of missing and unused weights says less than `open_model` does.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        return opened.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0] or repr(error)
        raise ValueError(f"{auto_class} of transformers cannot open {folder}: {reason}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
