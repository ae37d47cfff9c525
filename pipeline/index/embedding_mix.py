"""Stored embeddings of the texts that a caption mix serves.

Legend: B captions of a batch, E length of an embedding.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index.caption_mix import CaptionMix
from tessera.pipeline.index.embeddings import EncoderRecord, open_text_embeddings


class EmbeddingMix:
    """The embeddings of one encoder for all sources of a mix."""

    def __init__(self, captions: CaptionMix, name: str) -> None:
        """Map the stores.

        Args:
            captions: the mix; its original needs embeddings too, where a text of another source is
                missing.
            name: of the embeddings.

        Raises:
            ValueError: a source has no whole store of that name, or two sources were embedded by
                different encoders.
        """
        self._captions = captions
        self._stores = [
            open_text_embeddings(index, name, source) for index, source in captions.owners()
        ]
        self.encoder: EncoderRecord = self._stores[0].encoder
        """What made them."""
        self.dim = self.encoder.dim
        """E."""
        for source, store in zip(captions.names, self._stores, strict=True):
            if store.encoder.identity != self.encoder.identity:
                raise ValueError(
                    f"the embeddings {name!r} are of two encoders: {self.encoder.identity} for the "
                    f"caption source {captions.names[0]!r}, {store.encoder.identity} for "
                    f"{source!r}; make one of them again with tools/embed_captions.py"
                )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over those of the stores; changes with the captions and the encoder."""
        parts = " ".join(store.fingerprint for store in self._stores)
        return hashlib.sha256(parts.encode()).hexdigest()

    def lookup(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """[B, E] embeddings of the texts at `rows` of the mix."""
        found = np.empty((len(rows), self.dim), dtype=np.float16)
        for number, _, mine, own_rows in self._captions.by_table(rows):
            found[mine] = self._stores[number].lookup(own_rows)
        return found
