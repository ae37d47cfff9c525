"""A local vision-language model that describes pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL.Image import Image

from tessera.model.local_transformers import open_model, open_part
from tessera.tools.captioning.engine import Decoding


class PictureModel(Protocol):
    """Describes pictures."""

    def describe(self, pictures: Sequence[Image]) -> list[str]:
        """A text for each picture.

        Raises:
            ValueError: a picture is one that the model cannot take in.
        """
        ...


class VisionLanguageModel:
    """A model of transformers' `AutoModelForImageTextToText`, such as LLaVA, Qwen-VL or BLIP."""

    def __init__(
        self, folder: Path, prompt: str, max_new_tokens: int, device: torch.device
    ) -> None:
        """Open the model.

        Args:
            folder: of the model and its processor.
            prompt: what it is asked of every picture; may be empty.
            max_new_tokens: most tokens of a description; a longer one is cut.
            device: where it runs.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it cannot be opened.
        """
        self._processor = open_part(folder, "AutoProcessor")
        self._model = open_model(folder, "AutoModelForImageTextToText", device)
        self._decoding = Decoding(temperature=0, max_new_tokens=max_new_tokens)
        self._prompt = self._question(prompt)
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @torch.inference_mode()
    def describe(self, pictures: Sequence[Image]) -> list[str]:
        """See `PictureModel`; the likeliest token is taken always, so nothing is random."""
        inputs = self._processor(
            images=list(pictures), return_tensors="pt", **self._text_arguments(len(pictures))
        )
        inputs = inputs.to(self._model.device, dtype=self._model.dtype)
        tokens = self._model.generate(**inputs, **self._decoding.arguments())
        answers = self._decode(tokens)
        # Most models repeat the prompt in front of the answer, some do not.
        asked = self._decode(inputs["input_ids"]) if self._prompt else [""] * len(answers)
        return [
            answer.removeprefix(prompt).strip()
            for answer, prompt in zip(answers, asked, strict=True)
        ]

    def _text_arguments(self, count: int) -> dict[str, Any]:
        """The processor's arguments for the prompt."""
        if not self._prompt:
            return {}
        arguments: dict[str, Any] = {"text": [self._prompt] * count, "padding": True}
        start = self._processor.tokenizer.bos_token
        if start and self._prompt.startswith(start):
            # The chat template wrote it; a second one would be added.
            arguments["add_special_tokens"] = False
        return arguments

    def _decode(self, tokens: Any) -> list[str]:
        return self._processor.batch_decode(tokens, skip_special_tokens=True)

    def _question(self, prompt: str) -> str:
        """The prompt in the form that the model was trained with, if its processor knows that."""
        if not prompt or not self._processor.chat_template:
            return prompt
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        return self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
