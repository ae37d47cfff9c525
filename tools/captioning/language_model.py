"""A local causal language model that goes on with many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from tessera.model.local_transformers import open_part
from tessera.tools.captioning.engine import Backend, Completion, Decoding, Engine
from tessera.tools.captioning.transformers_engine import TransformersEngine
from tessera.tools.captioning.vllm_engine import VllmEngine


class TextModel(Protocol):
    """Goes on with texts."""

    def continue_lines(self, prompts: Sequence[str], seed: int) -> list[Completion]:
        """Go on with each prompt up to the end of its line; equal calls give equal texts."""
        ...

    def answer(self, questions: Sequence[str], seed: int) -> list[Completion]:
        """Answer each question, one line, less what announces it; equal calls give equal texts."""
        ...


class LanguageModel:
    """A `TextModel` that lies in a folder, as transformers saves it."""

    def __init__(
        self,
        folder: Path,
        decoding: Decoding,
        batch_size: int,
        device: torch.device,
        backend: Backend = "transformers",
    ) -> None:
        """Open the model.

        Args:
            folder: of the model and its tokenizer.
            decoding: how tokens are chosen.
            batch_size: prompts that the model sees together.
            device: where it runs; for vLLM the first GPU.
            backend: what runs it, from `choose_backend`.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it cannot be opened, or its tokenizer has no end token.
        """
        self._tokenizer = open_part(folder, "AutoTokenizer")
        self._engine: Engine = (
            VllmEngine(folder, self._tokenizer, decoding, batch_size)
            if backend == "vllm"
            else TransformersEngine(folder, self._tokenizer, decoding, batch_size, device)
        )
        self._room = self._engine.context - decoding.max_new_tokens

    def continue_lines(self, prompts: Sequence[str], seed: int) -> list[Completion]:
        """See `TextModel`. The prompts are used as they are, also with chat models."""
        ids = self._tokenizer(list(prompts))["input_ids"] if prompts else []
        found = self._complete(ids, seed, one_line=True)
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
        found = self._complete(ids, seed, one_line=False)
        return [replace(one, text=_answer_line(one.text)) for one in found]

    def _complete(self, ids: list[list[int]], seed: int, *, one_line: bool) -> list[Completion]:
        """Go on with those prompts that fit the model."""
        results = [Completion(text="", finished=False)] * len(ids)
        places = [place for place in range(len(ids)) if len(ids[place]) <= self._room]
        if places:
            fitting = [ids[place] for place in places]
            found = self._engine.complete(fitting, seed, one_line=one_line)
            for place, completion in zip(places, found, strict=True):
                results[place] = completion
        return results


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip()


def _answer_line(text: str) -> str:
    """The first line of an answer, or the second if the first one only announces it."""
    lines = [line.strip() for line in text.split("\n") if line.strip()] or [""]
    return lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
