"""What runs a language model: transformers, or vLLM where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

Backend = Literal["transformers", "vllm"]
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "HF_HUB_OFFLINE": "1",
}
"""Set before vLLM is imported, unless the caller's environment has them: scheduling that repeats,
no report of use to its makers, its log beside our lines and not among them, no download."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How the next token is chosen. The defaults are LaCLIP's."""

    temperature: float = 0.9
    """Logits are divided by it; 0 takes the likeliest token always."""
    top_p: float = 0.95
    """Drawn from the likeliest tokens whose shares add up to this, in (0, 1]."""
    max_new_tokens: int = 77
    """Most tokens of an answer; a longer one is not used."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise ValueError(
                "temperature must be at least 0, top_p in (0, 1], max_new_tokens at least 1"
            )

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of transformers' `generate`, which has a top-k of 50 otherwise."""
        length = {"max_new_tokens": self.max_new_tokens, "num_beams": 1}
        if self.temperature == 0:
            return {"do_sample": False, **length}
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"do_sample": True, **sampling, **length}


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What a model wrote."""

    text: str
    """Without the prompt."""
    finished: bool
    """Whether it ended by itself; False also where the prompt does not fit the model."""


class Engine(Protocol):
    """Goes on with token ids."""

    @property
    def context(self) -> float:
        """Most tokens of a prompt and its answer together; infinite where nobody knows."""
        ...

    def complete(
        self, prompts: Sequence[Sequence[int]], seed: int, *, one_line: bool
    ) -> list[Completion]:
        """Go on with each prompt, at least one, up to the model's end token.

        Args:
            prompts: token ids; each leaves room for the answer.
            seed: of the tokens drawn, 0 .. 2^63 - 1; equal calls give equal texts.
            one_line: the end of a line ends an answer as well. What stands behind it, if anything,
                is of no use.
        """
        ...


def choose_backend(name: Literal["auto", "transformers", "vllm"], device: torch.device) -> Backend:
    """The backend of that name; `auto` is vLLM where it can run, and says what was taken and why.

    Raises:
        ValueError: vLLM is asked for and cannot run; the message says why.
    """
    if name == "transformers":
        return name
    obstacle = _obstacle_to_vllm(device)
    if name == "vllm" and obstacle:
        raise ValueError(f"--backend vllm: {obstacle}; or take --backend transformers")
    if name == "auto":
        print(f"backend    transformers: {obstacle}" if obstacle else "backend    vllm")
    return "transformers" if obstacle else "vllm"


def import_vllm() -> Any:
    """The module.

    Raises:
        ImportError: it is not there, or was built for another torch.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    vllm = importlib.import_module("vllm")
    _ = vllm.LLM  # the package loads the rest of itself only when asked
    return vllm


def _obstacle_to_vllm(device: torch.device) -> str:
    """Why vLLM cannot run; empty if it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed (docs/rewriting.md says how)"
    if device.type != "cuda":
        return f"vLLM runs on a GPU here, not on {device}"
    if device.index:
        return (
            f"vLLM takes the first GPU that it sees, not {device}: set CUDA_VISIBLE_DEVICES="
            f"{device.index} in place of --device"
        )
    try:
        import_vllm()
    except ImportError as error:
        return f"vLLM is installed and cannot be imported ({error})"
    return ""
