"""Embeddings in LLM2CLIP's own files, written here as its code writes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.captions import caption_batch
from tessera.pipeline.index.llm2clip_archive import Llm2ClipArchive
from tessera.pipeline.index.tokenizer import encode_captions
from tests.conftest import write_tar

DIM = 6


@pytest.fixture
def index(coloured_index: Path, tmp_path: Path) -> Index:
    """The coloured index with a source of one text for each sample but two."""
    from tessera.pipeline.index.arrow_file import write_batch

    shutil.copytree(coloured_index, tmp_path / "index")
    owners = np.delete(np.arange(96), [5, 40])
    texts = [f"text number {n}" for n in owners]
    batch = caption_batch(texts, encode_captions(texts), owners)
    write_batch(tmp_path / "index" / "captions" / "short.arrow", batch)
    return open_index(tmp_path / "index")


def vector(key: str) -> NDArray[np.float32]:
    return np.arange(DIM, dtype=np.float32) + float(key) / 8


def write_archive(folder: Path, skipped: str = "", dim_of_last: int = DIM) -> Path:
    folder.mkdir(exist_ok=True)
    for shard in range(3):
        members = []
        for number in reversed(range(shard * 32, shard * 32 + 32)):  # any order will do
            key = f"{number:09d}"
            content = vector(key)[: dim_of_last if number == 95 else DIM].tobytes()
            if key != skipped:
                members.append((f"{key}.longSV_captions", (-vector(key)).tobytes()))
                members.append((f"{key}.shortSV_captions", content))
        write_tar(folder / f"{shard:05d}_text_embeddings.tar", members)
    return folder


def test_rows_come_in_the_order_of_the_texts(index: Index, tmp_path: Path) -> None:
    archive = Llm2ClipArchive(write_archive(tmp_path / "a"), index, "short", "shortsv_captions")
    found = np.concatenate(list(archive.batches()))
    keys = index.keys(index.captions("short").sample)
    np.testing.assert_array_equal(found, np.stack([vector(key) for key in keys]))
    assert archive.num_unused == 2
    assert archive.dim == DIM


def test_a_missing_key_file_or_field_is_named(index: Index, tmp_path: Path) -> None:
    folder = write_archive(tmp_path / "a", skipped="000000070")
    archive = Llm2ClipArchive(folder, index, "short", "shortSV_captions")
    with pytest.raises(ValueError, match="for 1 keys: 000000070"):
        list(archive.batches())
    with pytest.raises(ValueError, match=r"it has: .*longSV_captions"):
        Llm2ClipArchive(folder, index, "short", "raw")
    (folder / "00001_text_embeddings.tar").unlink()
    with pytest.raises(FileNotFoundError, match="00001_text_embeddings"):
        Llm2ClipArchive(folder, index, "short", "shortSV_captions")


def test_another_length_and_a_cut_file_are_refused(index: Index, tmp_path: Path) -> None:
    folder = write_archive(tmp_path / "a", dim_of_last=4)
    archive = Llm2ClipArchive(folder, index, "short", "shortSV_captions")
    with pytest.raises(ValueError, match="embeddings of 4, not 6"):
        list(archive.batches())
    path = folder / "00000_text_embeddings.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"00000_text_embeddings.tar (is damaged|has no short)"):
        list(Llm2ClipArchive(folder, index, "short", "shortSV_captions").batches())


def test_a_source_with_several_texts_of_a_sample_is_refused(index: Index, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="several texts in 'caption'"):
        Llm2ClipArchive(write_archive(tmp_path / "a"), index, "caption", "shortSV_captions")


def test_a_shard_without_texts_needs_no_embeddings(index: Index, tmp_path: Path) -> None:
    from tessera.pipeline.index.arrow_file import write_batch

    owners = np.arange(32, 96)
    texts = [f"text number {n}" for n in owners]
    batch = caption_batch(texts, encode_captions(texts), owners)
    write_batch(tmp_path / "index" / "captions" / "late.arrow", batch)
    folder = write_archive(tmp_path / "a")
    write_tar(folder / "00000_text_embeddings.tar", [])
    archive = Llm2ClipArchive(folder, open_index(tmp_path / "index"), "late", "shortSV_captions")
    assert sum(map(len, archive.batches())) == 64
    (folder / "00000_text_embeddings.tar").unlink()
    again = Llm2ClipArchive(folder, open_index(tmp_path / "index"), "late", "shortSV_captions")
    assert again.dim == DIM
