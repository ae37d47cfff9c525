"""A language model of transformers' `AutoModelForCausalLM`.

Legend: R prompts of a batch, L tokens of the longest, G tokens written, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.model.local_transformers import open_model
from tessera.tools.captioning.engine import Completion, Decoding


class TransformersEngine:
    """See `Engine`."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        decoding: Decoding,
        batch_size: int,
        device: torch.device,
    ) -> None:
        """Open the model.

        Args:
            folder: of the model.
            tokenizer: its tokenizer; it gets a pad token if it has none.
            decoding: how tokens are chosen.
            batch_size: R, prompts that the model sees together.
            device: where it runs.

        Raises:
            ValueError: the model cannot be opened, or its tokenizer has no end token.
        """
        self._tokenizer = tokenizer
        self._model = open_model(folder, "AutoModelForCausalLM", device)
        self._settings = decoding.arguments()
        self._batch_size = batch_size
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._ends = _end_ids(self._model, tokenizer)
        if not self._ends or tokenizer.pad_token is None:
            raise ValueError(f"the tokenizer of {folder} has no end token; set its eos_token")
        self._line_ends = sorted({*self._ends, *newline_ids(tokenizer)})
        # A checkpoint's own settings (repetition penalty and the like) would act unseen.
        self._model.generation_config = type(self._model.generation_config)()
        config = self._model.config.get_text_config()
        self.context = getattr(config, "max_position_embeddings", None) or float("inf")

    def complete(
        self, prompts: Sequence[Sequence[int]], seed: int, *, one_line: bool
    ) -> list[Completion]:
        """See `Engine`. Prompts of similar length share a batch."""
        results = [Completion(text="", finished=False)] * len(prompts)
        stops = self._line_ends if one_line else self._ends
        # The longest first, so that a batch too large for the memory fails at once.
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
        torch.manual_seed(seed)
        for first in range(0, len(order), self._batch_size):
            places = order[first : first + self._batch_size]
            new = self._generate([prompts[place] for place in places], stops)
            finished = torch.isin(new, torch.tensor(stops)).any(dim=1).tolist()
            texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
            for place, text, ended in zip(places, texts, finished, strict=True):
                results[place] = Completion(text=text, finished=ended)
        return results

    @torch.inference_mode()
    def _generate(self, ids: Sequence[Sequence[int]], stops: list[int]) -> Tensor:
        """[R, G] new tokens on the CPU, filled up with the pad token behind their ends."""
        batch = self._tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        tokens = self._model.generate(
            **batch.to(self._model.device),
            eos_token_id=stops,
            pad_token_id=self._tokenizer.pad_token_id,
            **self._settings,
        )
        return tokens[:, batch["input_ids"].shape[1] :].cpu()


def newline_ids(tokenizer: Any) -> list[int]:
    """Ids of all tokens that hold an end of line, alone or with other letters."""
    pieces = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    return [number for number, piece in enumerate(pieces) if "\n" in piece]


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: chat models have several."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return sorted({number for number in [*listed, tokenizer.eos_token_id] if number is not None})
