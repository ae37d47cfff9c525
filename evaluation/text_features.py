"""Text features of models that read a language model's embeddings (docs/llm2clip.md).

Captions of an index are looked up where their embeddings are stored; everything else, such as the
prompts of a classification, is embedded as it comes, by the encoder that the model was trained on.

Legend: K texts, E length of an embedding, d length of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.evaluation.encoder import TextFeatures
from tessera.evaluation.suite import Suite
from tessera.model import Clip
from tessera.model.config import AdapterConfig
from tessera.model.text_encoders import TextEncoder, open_text_encoder
from tessera.pipeline.index import open_index
from tessera.pipeline.index.captions import CaptionTable
from tessera.pipeline.index.dataset import open_dataset
from tessera.pipeline.index.embeddings import (
    EMBEDDINGS_DIR,
    EncoderRecord,
    TextEmbeddings,
    open_text_embeddings,
    read_store_record,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingTexts:
    """Features of an adapter, for `evaluation.encoder.Encoder`."""

    clip: Clip
    """The model, which has an adapter."""
    live: TextEncoder | None = None
    """What embeds texts that are stored nowhere; None where everything is stored."""
    _stores: dict[Path, TextEmbeddings | None] = field(default_factory=dict)

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """[K, d] features of texts that are in no index.

        Raises:
            ValueError: there is no live encoder.
        """
        if self.live is None:
            raise ValueError(_no_live_encoder(_adapter(self.clip), "texts that are in no index"))
        return self._encode(self.live.encode(list(texts)))

    def of_captions(self, table: CaptionTable, rows: NDArray[np.int64]) -> Tensor:
        """[K, d] features of texts of an index.

        Raises:
            ValueError: their embeddings are not stored, and there is no live encoder.
        """
        if table.path not in self._stores:
            self._stores[table.path] = stored_embeddings(table, _adapter(self.clip).encoder)
        store = self._stores[table.path]
        if store is None:
            return self.of_texts(table.texts(rows))
        return self._encode(torch.from_numpy(store.lookup(rows)))

    def _encode(self, embeddings: Tensor) -> Tensor:
        return self.clip.encode_embeddings(embeddings.to(self.clip.logit_scale.device))


def open_text_features(clip: Clip, text_encoder: str = "") -> TextFeatures | None:
    """How a model turns texts into features, where that is not its text tower.

    Args:
        clip: any model.
        text_encoder: what embeds texts that are stored nowhere: the folder of a sentence encoder or
            a language model, or `MODEL+LORA` with the folder of its LoRA weights; empty for none.

    Returns:
        None for a model that reads tokens.

    Raises:
        FileNotFoundError: there is no such encoder.
        ValueError: it is another one than the model was trained on, or the model reads tokens.
    """
    if clip.config.adapter is None:
        if text_encoder:
            raise ValueError(f"{clip.config.name!r} reads tokens: it needs no text_encoder")
        return None
    live = _open_live(clip.config.adapter, text_encoder, clip.logit_scale.device)
    return EmbeddingTexts(clip=clip, live=live)


def check_text_features(adapter: AdapterConfig, suite: Suite, text_encoder: str = "") -> None:
    """See at the start of a run that its evaluation will find every embedding.

    Args:
        adapter: of the model, with its encoder's name.
        suite: what will be measured.
        text_encoder: as for `open_text_features`.

    Raises:
        FileNotFoundError: there is no such encoder.
        ValueError: embeddings are missing, or the encoder is another one; with both values.
    """
    if text_encoder:
        _open_live(adapter, text_encoder, torch.device("cpu"))
        return
    texts_of = {"prompts": suite.zero_shot, "captions": (*suite.sugarcrepe, *suite.winoground)}
    for what, places in texts_of.items():
        if places:
            raise ValueError(_no_live_encoder(adapter, f"the {what} of {', '.join(places)}"))
    for place in suite.retrieval:
        if stored_embeddings(open_dataset(place).index.captions(), adapter.encoder) is None:
            raise ValueError(_no_live_encoder(adapter, f"the captions of {place}"))


def stored_embeddings(table: CaptionTable, encoder: str) -> TextEmbeddings | None:
    """The embeddings of a caption source by one encoder, whatever their name; None without any.

    Args:
        table: of an index.
        encoder: `EncoderRecord.identity`.

    Raises:
        ValueError: there are none, and others cannot be read that might be by that encoder.
    """
    index = open_index(table.path.parent.parent)
    unreadable: list[ValueError] = []
    for folder in sorted((index.directory / EMBEDDINGS_DIR).glob(f"*/{table.path.stem}")):
        try:
            store = open_text_embeddings(index, folder.parent.name, folder.name)
        except ValueError as error:
            if _may_be_by(encoder, folder):
                unreadable.append(error)
            continue
        if store.encoder.identity == encoder:
            return store
    if unreadable:
        raise unreadable[0]
    return None


def _may_be_by(encoder: str, folder: Path) -> bool:
    """Whether a store that cannot be read is by an encoder, as far as its record tells."""
    try:
        record = read_store_record(folder)
    except ValueError:
        return True
    return record.encoder.identity == encoder


def _adapter(clip: Clip) -> AdapterConfig:
    assert clip.config.adapter is not None
    return clip.config.adapter


def _open_live(adapter: AdapterConfig, path: str, device: torch.device) -> TextEncoder | None:
    if not path:
        return None
    model, _, lora = (path, "", "") if Path(path).is_dir() else path.partition("+")
    live = open_text_encoder(
        Path(model),
        adapter=Path(lora) if lora else None,
        device=device,
        # As tools/embed_captions.py chooses.
        dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
    )
    identity = EncoderRecord(**live.description).identity
    if identity != adapter.encoder:
        raise ValueError(
            f"the model was trained on embeddings of {adapter.encoder}, and {path} holds {identity}"
        )
    return live


def _no_live_encoder(adapter: AdapterConfig, what: str) -> str:
    return (
        f"{what} have no stored embeddings of {adapter.encoder}: name that encoder's folder with "
        "--evaluation.text-encoder (in tools, --text-encoder), store them with "
        "tools/embed_captions.py, or leave the set out"
    )
