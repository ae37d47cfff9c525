"""A local causal language model that goes on with many prompts at once.

Legend: R prompts of a batch, L tokens of the longest, G tokens written, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.local_transformers import open_model, open_part


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


class TextModel(Protocol):
    """Goes on with texts."""

    def continue_lines(self, prompts: Sequence[str], seed: int) -> list[Completion]:
        """Go on with each prompt up to the end of its line; equal calls give equal texts."""
        ...

    def answer(self, questions: Sequence[str], seed: int) -> list[Completion]:
        """Answer each question, one line, less what announces it; equal calls give equal texts."""
        ...


class LanguageModel:
    """A model of transformers' `AutoModelForCausalLM`."""

    def __init__(
        self, folder: Path, decoding: Decoding, batch_size: int, device: torch.device
    ) -> None:
        """Open the model.

        Args:
            folder: of the model and its tokenizer.
            decoding: how tokens are chosen.
            batch_size: R, prompts that the model sees together.
            device: where it runs.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it cannot be opened, or its tokenizer has no end token.
        """
        self._tokenizer = open_part(folder, "AutoTokenizer")
        self._model = open_model(folder, "AutoModelForCausalLM", device)
        self._decoding = decoding
        self._batch_size = batch_size
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._ends = _end_ids(self._model, self._tokenizer)
        if not self._ends or self._tokenizer.pad_token is None:
            raise ValueError(f"the tokenizer of {folder} has no end token; set its eos_token")
        self._line_ends = sorted({*self._ends, *newline_ids(self._tokenizer)})
        # A checkpoint's own settings (repetition penalty and the like) would act unseen.
        self._model.generation_config = type(self._model.generation_config)()
        config = self._model.config.get_text_config()
        self._context = getattr(config, "max_position_embeddings", None) or float("inf")

    def continue_lines(self, prompts: Sequence[str], seed: int) -> list[Completion]:
        """See `TextModel`. The prompts are used as they are, also with chat models."""
        ids = self._tokenizer(list(prompts))["input_ids"] if prompts else []
        found = self._complete(ids, self._line_ends, seed)
        return [replace(one, text=_first_line(one.text)) for one in found]

    def answer(self, questions: Sequence[str], seed: int) -> list[Completion]:
        """See `TextModel`. A model with a chat template gets each as a user's message."""
        if not self._tokenizer.chat_template:
            return self.continue_lines(questions, seed)
        # Models that may think aloud first do not with enable_thinking; other templates ignore it.
        chats = [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                enable_thinking=False,
                tokenize=False,
            )
            for question in questions
        ]
        ids = self._tokenizer(chats, add_special_tokens=False)["input_ids"] if chats else []
        found = self._complete(ids, self._ends, seed)
        return [replace(one, text=_answer_line(one.text)) for one in found]

    def _complete(self, ids: list[list[int]], stops: list[int], seed: int) -> list[Completion]:
        """Go on with prompts of any number; those of similar length share a batch."""
        results = [Completion(text="", finished=False)] * len(ids)
        room = self._context - self._decoding.max_new_tokens
        fitting = [place for place in range(len(ids)) if len(ids[place]) <= room]
        # The longest first, so that a batch too large for the memory fails at once.
        fitting.sort(key=lambda place: -len(ids[place]))
        torch.manual_seed(seed)
        for first in range(0, len(fitting), self._batch_size):
            places = fitting[first : first + self._batch_size]
            new = self._generate([ids[place] for place in places], stops)
            finished = torch.isin(new, torch.tensor(stops)).any(dim=1).tolist()
            texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
            for place, text, ended in zip(places, texts, finished, strict=True):
                results[place] = Completion(text=text, finished=ended)
        return results

    @torch.inference_mode()
    def _generate(self, ids: list[list[int]], stops: list[int]) -> Tensor:
        """[R, G] new tokens on the CPU, filled up with the pad token behind their ends."""
        batch = self._tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        tokens = self._model.generate(
            **batch.to(self._model.device),
            eos_token_id=stops,
            pad_token_id=self._tokenizer.pad_token_id,
            **self._decoding.arguments(),
        )
        return tokens[:, batch["input_ids"].shape[1] :].cpu()


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip()


def _answer_line(text: str) -> str:
    """The first line of an answer, or the second if the first one only announces it."""
    lines = [line.strip() for line in text.split("\n") if line.strip()] or [""]
    return lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def newline_ids(tokenizer: Any) -> list[int]:
    """Ids of all tokens that hold an end of line, alone or with other letters."""
    pieces = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    return [number for number, piece in enumerate(pieces) if "\n" in piece]


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: chat models have several."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return sorted({number for number in [*listed, tokenizer.eos_token_id] if number is not None})
