"""Texts as the tokens that an encoder reads, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tessera.model.text_encoders.encoder import TokenBatch


class LanguageModelTokens:
    """Start token, instruction, text; only the text is pooled.

    A start token is left out of the mean, as LLM2Vec does: language models give it a state many
    times as long as any other.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        """Take a tokenizer.

        Args:
            tokenizer: of transformers.
            max_tokens: most tokens of a text with all that stands before it.

        Raises:
            ValueError: it has neither an end token nor a padding token.
        """
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        start = tokenizer.bos_token_id
        begins = tokenizer("a")["input_ids"][:1] == [start]
        self._start = [start] if start is not None and begins else []
        ends = [n for n in (tokenizer.eos_token_id, tokenizer.pad_token_id) if n is not None]
        if not ends:
            raise ValueError("the tokenizer has neither an end token nor a padding token; set one")
        self._end = ends[0]

    def __call__(self, texts: Sequence[str], instructions: Sequence[str]) -> TokenBatch:
        """See `Tokenise`. A text without tokens is read as the end token.

        Raises:
            ValueError: an instruction leaves no room for its text.
        """
        known = sorted(set(instructions))
        before_of = dict(zip(known, self._ids(known), strict=True))
        rows, num_before = [], []
        for ids, instruction in zip(self._ids(texts), instructions, strict=True):
            before = [*self._start, *before_of[instruction]]
            room = self._max_tokens - len(before)
            if room < 1:
                raise ValueError(
                    f"an instruction of {len(before)} tokens leaves no room for a text in "
                    f"{self._max_tokens}: allow more tokens, or shorten it"
                )
            rows.append([*before, *(ids[:room] or [self._end])])
            num_before.append(len(before))
        return _padded(rows, num_before, self._end)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        options = {"add_special_tokens": False, "truncation": True, "max_length": self._max_tokens}
        return self._tokenizer(list(texts), **options)["input_ids"]


class SentenceTokens:
    """The tokens of a sentence encoder: with its special tokens, all of them pooled."""

    def __init__(self, tokenizer: Any, max_tokens: int, lower_case: bool) -> None:
        """Take a tokenizer.

        Args:
            tokenizer: of transformers.
            max_tokens: most tokens of a text, special tokens included.
            lower_case: whether texts are put in small letters before.
        """
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._lower_case = lower_case

    def __call__(self, texts: Sequence[str], instructions: Sequence[str]) -> TokenBatch:
        """See `Tokenise`. An instruction is a part of the text, as with sentence-transformers."""
        whole = [before + text for before, text in zip(instructions, texts, strict=True)]
        rows = self._tokenizer(
            [text.lower() for text in whole] if self._lower_case else whole,
            truncation=True,
            max_length=self._max_tokens,
        )["input_ids"]
        return _padded(rows, [0] * len(rows), self._tokenizer.pad_token_id or 0)


def _padded(rows: list[list[int]], num_before: list[int], fill: int) -> TokenBatch:
    """Rows of ids as one batch; the first `num_before` of each are not pooled."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    places = torch.arange(longest)
    ids = torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
    mask = places < lengths[:, None]
    return TokenBatch(
        ids=ids, mask=mask, pooled=mask & (places >= torch.tensor(num_before)[:, None])
    )
