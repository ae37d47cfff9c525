"""open_clip's BPE, giving plain id arrays that are stored and packed without padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.captions import MAX_TOKENS, pack_tokens

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

TOKENIZER_NAME = "open_clip.SimpleTokenizer"
_MAX_CACHED_WORDS = 200_000


def encode_captions(texts: Sequence[str]) -> list[NDArray[np.uint16]]:
    """Token ids of each text, without SOT and EOT.

    Args:
        texts: any number of texts; each must be encodable as UTF-8.

    Returns:
        One uint16 array per text, at most 253 ids, equal to what
        `open_clip.get_tokenizer("ViT-B-16")` has between SOT and EOT.
    """
    tokenizer = _tokenizer()
    arrays = [np.array(tokenizer.encode(text)[:MAX_TOKENS], dtype=np.uint16) for text in texts]
    if len(tokenizer.cache) > _MAX_CACHED_WORDS:
        # The tokenizer remembers every word it ever saw: gigabytes over a web-sized set.
        tokenizer.cache = {text: text for text in _special_texts(tokenizer)}
    return arrays


def tokenize_prompts(
    texts: Sequence[str], context_length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokenise texts that are in no index, such as the prompts of a zero-shot evaluation.

    Args:
        texts: B texts.
        context_length: most tokens of one text, SOT and EOT included.

    Returns:
        tokens [U] int32 and text_offsets [B+1] int32, as in `PackedBatch`.

    Raises:
        ValueError: `context_length` is below 2 or above 255.
    """
    arrays = encode_captions(texts)
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    ids = np.concatenate(arrays) if arrays else np.empty(0, np.uint16)
    return pack_tokens(ids, np.cumsum(lengths) - lengths, lengths, context_length)


def token_strings(ids: Iterable[int]) -> list[str]:
    """What each token id stands for, for people to read; `</w>` marks the end of a word."""
    decoder = _tokenizer().decoder
    return [decoder[int(token)] for token in ids]


@lru_cache(maxsize=1)
def _tokenizer() -> SimpleTokenizer:
    # open_clip imports torch, which nothing that only reads an index should pay for.
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def _special_texts(tokenizer: SimpleTokenizer) -> list[str]:
    return [tokenizer.decoder[token] for token in tokenizer.all_special_ids]
