"""A language model run by vLLM's offline `LLM`.

Written after the source of vLLM 0.33.0 and tested against a stand-in with its signatures; it was
never run on a real vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tessera.model.local_transformers import open_part
from tessera.tools.captioning.engine import Completion, Decoding, import_vllm

_MOST_CONTEXT = 8192
"""Tokens. vLLM reserves memory for one answer of full length: too much for 128k of context."""
_NUM_SEEDS = 2**63


class VllmEngine:
    """See `Engine`."""

    def __init__(self, folder: Path, tokenizer: Any, decoding: Decoding, batch_size: int) -> None:
        """Open the model on the first GPU.

        Args:
            folder: of the model.
            tokenizer: its tokenizer.
            decoding: how tokens are chosen.
            batch_size: prompts that the model sees together.

        Raises:
            ValueError: the model or a setting is not one for vLLM, or the memory does not do.
        """
        if decoding.temperature > 2:
            raise ValueError(f"vLLM takes a temperature of at most 2, got {decoding.temperature}")
        vllm = import_vllm()
        config = open_part(folder, "AutoConfig").get_text_config()
        known = getattr(config, "max_position_embeddings", None) or _MOST_CONTEXT
        self.context = min(known, tokenizer.model_max_length, _MOST_CONTEXT)
        self._sampling_params = vllm.SamplingParams
        self._decoding = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_new_tokens,
        }
        self._llm = vllm.LLM(
            model=str(folder.resolve()),  # never taken for a name on the hub
            trust_remote_code=False,
            load_format="safetensors",
            max_model_len=self.context,
            max_num_seqs=batch_size,
            # What earlier prompts left there changes the last bits of later ones, and a resumed
            # run has other earlier prompts.
            enable_prefix_caching=False,
        )

    def complete(
        self, prompts: Sequence[Sequence[int]], seed: int, *, one_line: bool
    ) -> list[Completion]:
        """See `Engine`. vLLM knows the model's end tokens itself."""
        stop = ["\n"] if one_line else None
        # Prompts with one seed would all draw the same noise.
        params = [
            self._sampling_params(seed=(seed + place) % _NUM_SEEDS, stop=stop, **self._decoding)
            for place in range(len(prompts))
        ]
        tokens = [{"prompt_token_ids": list(ids)} for ids in prompts]
        answers = [each.outputs[0] for each in self._llm.generate(tokens, params, use_tqdm=False)]
        return [Completion(text=one.text, finished=one.finish_reason == "stop") for one in answers]
