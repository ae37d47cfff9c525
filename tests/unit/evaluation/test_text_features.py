"""Which stored embeddings of an index a model is measured with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tessera.evaluation.text_features import stored_embeddings
from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.embeddings import (
    EmbeddingWriter,
    EncoderRecord,
    write_text_embeddings,
)

MINE = EncoderRecord(
    id="mine", path="nowhere", revision="1" * 64, pooling="mean", dim=3, dtype="float32"
)


@pytest.fixture
def index(coloured_index: Path, tmp_path: Path) -> Index:
    shutil.copytree(coloured_index.parent, tmp_path / "coloured")
    return open_index(tmp_path / "coloured" / "index")


def test_a_store_that_another_encoder_has_begun_does_not_matter(index: Index) -> None:
    EmbeddingWriter(index, "a", "caption", replace(MINE, revision="2" * 64))
    assert stored_embeddings(index.captions(), MINE.identity) is None
    rows = np.ones((index.captions().num_texts, 3))
    write_text_embeddings(index, "b", "caption", MINE, [rows])
    store = stored_embeddings(index.captions(), MINE.identity)
    assert store is not None
    assert store.encoder == MINE


def test_a_renamed_encoder_is_the_same(index: Index) -> None:
    rows = np.ones((index.captions().num_texts, 3))
    write_text_embeddings(index, "a", "caption", replace(MINE, id="renamed"), [rows])
    store = stored_embeddings(index.captions(), MINE.identity)
    assert store is not None
    assert store.encoder.id == "renamed"


def test_a_store_that_the_models_own_encoder_has_begun_is_refused(index: Index) -> None:
    EmbeddingWriter(index, "a", "caption", MINE)
    with pytest.raises(ValueError, match="are missing"):
        stored_embeddings(index.captions(), MINE.identity)


def test_a_store_without_a_readable_record_is_refused(index: Index) -> None:
    EmbeddingWriter(index, "a", "caption", replace(MINE, revision="2" * 64))
    (index.directory / "embeddings" / "a" / "caption" / "embeddings.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        stored_embeddings(index.captions(), MINE.identity)
