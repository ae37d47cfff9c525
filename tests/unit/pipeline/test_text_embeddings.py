"""The store of text embeddings: what is read back, and what is refused with both values."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.embeddings import (
    EmbeddingWriter,
    EncoderRecord,
    open_text_embeddings,
    write_text_embeddings,
)

DIM = 24
ENCODER = EncoderRecord(
    id="tiny", path="/models/tiny", revision="ab12", pooling="mean", dim=DIM, dtype="float32"
)


@pytest.fixture
def index(coloured_index: Path, tmp_path: Path) -> Index:
    shutil.copytree(coloured_index, tmp_path / "index")
    return open_index(tmp_path / "index")


def vectors(num_texts: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(0, 4, (num_texts, DIM)).astype(np.float32)


def written(index: Index, rows_per_part: int = 50) -> NDArray[np.float32]:
    num_texts = index.captions().num_texts
    writer = EmbeddingWriter(index, "tiny", "caption", ENCODER, rows_per_part)
    for part in reversed(writer.missing()):
        writer.write(part, vectors(num_texts)[writer.rows(part)])
    return vectors(num_texts)


@pytest.mark.parametrize("rows_per_part", [1, 50, 192, 1000])
def test_rows_come_back_in_any_order_and_repeated(index: Index, rows_per_part: int) -> None:
    expected = written(index, rows_per_part).astype(np.float16)
    store = open_text_embeddings(index, "tiny", "caption")
    rows = np.random.default_rng(1).integers(0, len(expected), 500)
    found = store.lookup(rows)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected[rows])
    assert store.lookup(np.empty(0, np.int64)).shape == (0, DIM)
    assert (store.dim, store.num_texts, store.encoder) == (DIM, len(expected), ENCODER)


def test_rows_outside_are_refused(index: Index) -> None:
    num_texts = len(written(index))
    store = open_text_embeddings(index, "tiny", "caption")
    for row in (-1, num_texts):
        with pytest.raises(IndexError, match=str(row)):
            store.lookup(np.array([0, row]))


def test_batches_of_any_size_become_the_same_store(index: Index) -> None:
    num_texts = index.captions().num_texts
    batches = np.array_split(vectors(num_texts), [7, 7, 100])
    store = write_text_embeddings(index, "tiny", "caption", ENCODER, batches)
    np.testing.assert_array_equal(
        store.lookup(np.arange(num_texts)), vectors(num_texts).astype(np.float16)
    )
    with pytest.raises(ValueError, match=f"{num_texts - 1} embeddings for the {num_texts} texts"):
        write_text_embeddings(index, "b", "caption", ENCODER, [vectors(num_texts)[1:]])


def test_a_pickled_store_maps_the_same_files(index: Index) -> None:
    expected = written(index).astype(np.float16)
    store = pickle.loads(pickle.dumps(open_text_embeddings(index, "tiny", "caption")))
    np.testing.assert_array_equal(store.lookup(np.array([3, 120])), expected[[3, 120]])


def test_missing_rows_are_refused_and_a_second_writer_goes_on(index: Index) -> None:
    expected = written(index)
    folder = index.directory / "embeddings" / "tiny" / "caption"
    (folder / "00001.f16").unlink()
    with pytest.raises(ValueError, match=rf"50 of the {len(expected)} embeddings .* are missing"):
        open_text_embeddings(index, "tiny", "caption")
    writer = EmbeddingWriter(index, "tiny", "caption", ENCODER, rows_per_part=77)
    assert writer.missing() == [1]
    assert writer.rows(1).tolist() == list(range(50, 100))
    writer.write(1, expected[50:100])
    assert len(open_text_embeddings(index, "tiny", "caption").lookup(np.arange(100))) == 100


def test_a_file_of_another_size_is_refused_with_both_sizes(index: Index) -> None:
    written(index)
    path = index.directory / "embeddings" / "tiny" / "caption" / "00002.f16"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=f"{50 * DIM * 2 - 2} bytes instead of {50 * DIM * 2}"):
        open_text_embeddings(index, "tiny", "caption")


@pytest.mark.parametrize(
    ("field", "value"),
    [("index_fingerprint", "f00"), ("source_fingerprint", "f00"), ("num_texts", 7)],
)
def test_another_index_source_or_count_is_refused_with_both_values(
    index: Index, field: str, value: object
) -> None:
    written(index)
    path = index.directory / "embeddings" / "tiny" / "caption" / "embeddings.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {field: value}))
    with pytest.raises(ValueError, match=f"{value}, here it is {content[field]}"):
        open_text_embeddings(index, "tiny", "caption")
    with pytest.raises(ValueError, match="here it is"):
        EmbeddingWriter(index, "tiny", "caption", ENCODER)


def test_unknown_embeddings_are_refused_with_those_there_are(index: Index) -> None:
    written(index)
    with pytest.raises(ValueError, match="there are: tiny/caption"):
        open_text_embeddings(index, "large", "caption")


def test_another_encoder_does_not_go_on_with_a_store(index: Index) -> None:
    written(index)
    EmbeddingWriter(index, "tiny", "caption", replace(ENCODER, id="renamed", path="/elsewhere"))
    with pytest.raises(ValueError, match="revision 'ab12', now 'cd34'"):
        EmbeddingWriter(index, "tiny", "caption", replace(ENCODER, revision="cd34"))


def test_an_encoder_of_unknown_content_goes_by_its_name(index: Index) -> None:
    unknown = replace(ENCODER, revision="")
    EmbeddingWriter(index, "tiny", "caption", unknown)
    with pytest.raises(ValueError, match="id 'tiny', now 'other'"):
        EmbeddingWriter(index, "tiny", "caption", replace(unknown, id="other"))


def test_the_fingerprint_is_of_captions_and_encoder_only(index: Index) -> None:
    written(index)
    first = open_text_embeddings(index, "tiny", "caption").fingerprint
    shutil.rmtree(index.directory / "embeddings")
    num_texts = index.captions().num_texts
    elsewhere = replace(ENCODER, id="renamed", path="/elsewhere")
    store = write_text_embeddings(index, "b", "caption", elsewhere, [vectors(num_texts)])
    assert store.fingerprint == first
    other = replace(ENCODER, pooling="cls")
    store = write_text_embeddings(index, "c", "caption", other, [vectors(num_texts)])
    assert store.fingerprint != first


def test_what_float16_cannot_hold_is_refused(index: Index) -> None:
    writer = EmbeddingWriter(index, "tiny", "caption", ENCODER)
    found = vectors(index.captions().num_texts)
    found[9, 2] = 1e6
    with pytest.raises(ValueError, match="text 9 "):
        writer.write(0, found)
    with pytest.raises(ValueError, match="needs embeddings"):
        writer.write(0, found[1:])
