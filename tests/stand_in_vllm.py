"""A module in place of vLLM, which needs a GPU: the same calls, and texts from a random generator.

Names, defaults and meanings of the arguments are those of vLLM 0.33.0, as its source has them
(entrypoints/llm.py, entrypoints/common/offline.py, engine/arg_utils.py, sampling_params.py,
outputs.py), cut down to what Tessera gives or could be hurt by. An argument that is not listed here
is refused. What a real vLLM does beyond these signatures, no test of ours can show.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tessera.model.local_transformers import open_part
from tessera.tools.captioning.engine import ENVIRONMENT
from tests.tiny_models import WORDS


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = 16

    def __post_init__(self) -> None:
        assert 0 <= self.temperature <= 2  # VLLMValidationError there, which is no ValueError
        assert 0 < self.top_p <= 1
        assert self.seed is None or -(2**63) <= self.seed < 2**64


@dataclass(kw_only=True)
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None = None
    """stop, length or abort."""
    stop_reason: int | str | None = None


@dataclass(kw_only=True)
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class LLM:
    model: str
    trust_remote_code: bool = field(default=False, kw_only=True)
    dtype: str = field(default="auto", kw_only=True)
    seed: int = field(default=0, kw_only=True)
    load_format: str = field(default="auto", kw_only=True)
    max_model_len: int | None = field(default=None, kw_only=True)
    max_num_seqs: int | None = field(default=None, kw_only=True)
    enable_prefix_caching: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        assert Path(self.model).is_dir(), "vLLM would ask the hub"
        config = open_part(Path(self.model), "AutoConfig")
        self._tokenizer = open_part(Path(self.model), "AutoTokenizer")
        derived = min(config.max_position_embeddings, self._tokenizer.model_max_length)
        if self.max_model_len is not None and self.max_model_len > derived:
            raise ValueError("User-specified max_model_len is greater than the derived one")
        self._context = self.max_model_len or derived
        self._num_requests = 0

    def generate(
        self,
        prompts: Sequence[dict[str, Any]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        assert not use_tqdm, "a bar would be drawn into ours"
        assert isinstance(sampling_params, Sequence)
        outputs = [
            self._answer(list(prompt["prompt_token_ids"]), params)
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]
        return sorted(outputs, key=lambda output: int(output.request_id))

    def _answer(self, ids: list[int], params: SamplingParams) -> RequestOutput:
        if len(ids) > self._context:
            raise ValueError("The decoder prompt is longer than the maximum model length")
        output = _write(ids, params)
        self._num_requests += 1
        return RequestOutput(
            request_id=str(self._num_requests),
            prompt=None,
            prompt_token_ids=ids,
            outputs=[output],
            finished=True,
        )


def _write(ids: list[int], params: SamplingParams) -> CompletionOutput:
    """Words up to a stop string, an end token or the limit: a function of prompt and seed."""
    drawn = random.Random(f"{ids} {params.seed if params.temperature else None}")
    stops = params.stop or []
    words: list[str] = []
    for _ in range(params.max_tokens or 16):
        word = drawn.choice([*WORDS, "</s>"])
        if word == "</s>" or word in stops:
            reason = None if word == "</s>" else word
            return _output(words, "stop", reason)
        words.append(word)
    return _output(words, "length", None)


def _output(words: list[str], reason: str, stopped_by: str | None) -> CompletionOutput:
    return CompletionOutput(
        index=0,
        text=" " + " ".join(words),
        token_ids=range(len(words)),
        finish_reason=reason,
        stop_reason=stopped_by,
    )


def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Put the module where `import vllm` finds it, for the length of a test."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.__dict__.update(LLM=LLM, SamplingParams=SamplingParams, __version__="stand-in")
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module
