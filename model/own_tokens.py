"""Token ids of models that do not read CLIP's byte-pair encoding as the index stores it.

The tokenizer is open_clip's, made from the names in its model JSON: captions are tokenised as they
are served.

Shapes: B captions, L the context length, U tokens of all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.model.config import TextConfig


class OwnTokens:
    """A tokenizer of open_clip, whose ids are packed end to end."""

    identity: str
    """Name and content (SHA-256) of the tokenizer: what must stay the same over a run."""

    def __init__(self, config: TextConfig) -> None:
        """Open the tokenizer that a model names.

        Raises:
            ValueError: it is neither in a folder nor in Hugging Face's cache and cannot be fetched.
        """
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer  # takes seconds

        options: dict[str, Any] = dict(config.tokenizer_options)
        try:
            if config.tokenizer is None:
                self._tokenizer: Any = SimpleTokenizer(**options)
            else:
                self._tokenizer = HFTokenizer(config.tokenizer, **options)
        except (OSError, ValueError, TypeError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"the tokenizer {config.tokenizer or options} of this model cannot be opened: "
                f"{reason}; fetch it before with `hf download {config.tokenizer}`"
            ) from error
        self._config = config
        inner: Any = getattr(self._tokenizer, "tokenizer", None)
        content = inner.backend_tokenizer.to_str() if hasattr(inner, "backend_tokenizer") else ""
        made_of = json.dumps([config.tokenizer, sorted(options.items()), content])
        digest = hashlib.sha256(made_of.encode()).hexdigest()
        self.identity = f"sha256:{digest} ({config.tokenizer or 'open_clip.SimpleTokenizer'})"

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Tokenise texts.

        A causal tower that is read at an end token gets a caption up to that token. Any other
        tower sees the padding in open_clip, so the padding is a part of the caption.

        Returns:
            tokens [U] int32 and text_offsets [B+1] int32, as in `PackedBatch`.
        """
        config = self._config
        ids = self._tokenizer(list(texts), context_length=config.context_length).numpy()
        lengths = np.full(len(ids), config.context_length)
        if config.causal and config.pool in ("argmax", "eos"):
            is_end = ids == (
                ids.max(1, keepdims=True) if config.pool == "argmax" else config.eos_id
            )
            lengths = is_end.argmax(1) + 1
        kept = np.arange(ids.shape[1]) < lengths[:, None]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return ids[kept].astype(np.int32), offsets.astype(np.int32)


@lru_cache(maxsize=4)
def own_tokens(config: TextConfig) -> OwnTokens | None:
    """The tokenizer of a model; None where it reads the ids that the index stores.

    Raises:
        ValueError: see `OwnTokens`.
    """
    return None if config.uses_clip_bpe else OwnTokens(config)
