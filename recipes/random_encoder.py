"""A language model with random weights, for miniatures: it runs like one and knows nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.model.text_encoders import TextEncoder, open_text_encoder
from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.text_embeddings import (
    EncoderRecord,
    open_text_embeddings,
    write_text_embeddings,
)
from tessera.training.miniature import ENCODER_DIM

_BATCH = 64


def embed_miniature(encoder: Path, name: str, sources: Mapping[Path, Sequence[str]]) -> None:
    """Make the encoder and the embeddings of a miniature, as far as they are not there.

    Args:
        encoder: folder of the encoder.
        name: of the embeddings.
        sources: caption sources of each index.
    """
    indexes = {folder: open_index(folder) for folder in sources}
    if not (encoder / "model.safetensors").is_file():
        words = {
            word
            for folder, names in sources.items()
            for source in names
            for text in indexes[folder].captions(source).text.to_pylist()
            for word in text.split()
        }
        _save_encoder(encoder, sorted(words))
    opened = open_text_encoder(encoder)
    for folder, names in sources.items():
        for source in names:
            _embed(indexes[folder], name, source, opened)


def _save_encoder(folder: Path, words: Sequence[str]) -> None:
    """A Llama of two small layers whose tokens are words; the same weights each time."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    special = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), *words])}
    inner = Tokenizer(WordLevel(vocabulary, special["unk"]))
    inner.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    named = {f"{name}_token": token for name, token in special.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaModel(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=ENCODER_DIM,
                intermediate_size=2 * ENCODER_DIM,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=512,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _embed(index: Index, name: str, source: str, encoder: TextEncoder) -> None:
    record = EncoderRecord(**encoder.description)
    try:
        if open_text_embeddings(index, name, source).encoder.identity == record.identity:
            return
    except ValueError:
        pass  # none yet
    texts = index.captions(source).text.to_pylist()

    def batches() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(texts), _BATCH):
            yield encoder.encode(texts[start : start + _BATCH]).numpy()

    write_text_embeddings(index, name, source, record, batches())
