"""Low-rank adapters (LoRA) of a language model, through peft."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Projections that are adapted: all of attention and of the feed-forward layers, by the names of
Llama, Qwen, Mistral and Gemma."""
_WEIGHTS = "adapter_model.safetensors"
_BASE = "base_model.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Size of the adapters. The defaults are LLM2CLIP's (arXiv 2411.04997)."""

    rank: int = 16
    """Rank of an adapter's product."""
    alpha: int = 32
    """The product is scaled by alpha / rank."""
    dropout: float = 0.05
    """Share of an adapter's inputs that is left out while training, 0 to 1."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ValueError("LoRA needs rank and alpha of at least 1 and a dropout in [0, 1)")


def add_lora(backbone: nn.Module, config: LoraConfig) -> Any:
    """Freeze a model and give it new adapters, which change nothing yet.

    Returns:
        peft's model around it; only the adapters require a gradient.

    Raises:
        ValueError: peft is missing, or the model has no projection of the names of `TARGETS`.
    """
    peft = _peft()
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(TARGETS),
        bias="none",
    )
    return peft.get_peft_model(backbone, settings)


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """The adapters of peft's model, by peft's names."""
    return _peft().get_peft_model_state_dict(model, save_embedding_layers=False)


def restore_adapter(model: Any, tensors: dict[str, Tensor]) -> None:
    """Put adapters in the place of those that a model has.

    Raises:
        ValueError: the tensors are not those of this model's adapters.
    """
    expected = adapter_tensors(model)
    differing = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected
        or name not in tensors
        or expected[name].shape != tensors[name].shape
    )
    if differing:
        raise ValueError(
            f"{len(differing)} tensors of the adapter do not fit this model, such as {differing[0]}"
        )
    _peft().set_peft_model_state_dict(model, tensors)


def save_lora(model: Any, folder: Path, base_revision: str) -> None:
    """Write the adapters as peft does, and beside them which weights they were trained on.

    Args:
        model: peft's model.
        folder: made if it is not there.
        base_revision: of the model they belong to.
    """
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / _BASE).write_text(json.dumps({"revision": base_revision}) + "\n", encoding="utf-8")


def with_lora(backbone: nn.Module, folder: Path, base_revision: str) -> nn.Module:
    """A model with the adapters of a folder added to its weights.

    Args:
        backbone: the model they were trained on.
        folder: as `save_lora` or peft writes it.
        base_revision: of that model.

    Raises:
        FileNotFoundError: the folder holds no adapters in safetensors.
        ValueError: peft is missing, or they belong to another model.
    """
    if not (folder / _WEIGHTS).is_file():
        raise FileNotFoundError(f"there is no adapter in {folder}: it has no {_WEIGHTS}")
    base = folder / _BASE
    if base.is_file():
        stored = json.loads(base.read_text(encoding="utf-8"))["revision"]
        if stored != base_revision:
            raise ValueError(
                f"the adapter {folder} was trained on the weights {stored}, this model has "
                f"{base_revision}"
            )
    peft = _peft()
    settings = peft.PeftConfig.from_pretrained(str(folder))
    settings.inference_mode = True
    model = peft.get_peft_model(backbone, settings)
    restore_adapter(model, load_file(folder / _WEIGHTS))
    return model.merge_and_unload()


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise ValueError("peft is not installed: pip install peft") from None
