"""A small index without pictures, and captions whose words tell them apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tessera.pipeline import index as layout
from tessera.pipeline.index import Index, ScanOptions, open_index
from tessera.pipeline.index.arrow_file import write_batch
from tessera.pipeline.index.captions import caption_batch
from tessera.pipeline.index.tokenizer import encode_captions


def caption_of(number: int) -> str:
    return f"a picture of thing{number} near place{number}"


def url_of(number: int) -> str:
    return f"https://img.example.org/{number}.jpg" if number else ""


def write_index(directory: Path, num_samples: int) -> Index:
    """An index with keys `000000000`, urls and captions, whose shard does not exist."""
    (directory / "captions").mkdir(parents=True)
    (directory / "columns").mkdir()
    rows = np.arange(num_samples)
    ints = pa.array(np.ones(num_samples, np.int32))
    keys = pa.array([f"{n:09d}" for n in rows], pa.large_string())
    zeros = pa.array(np.zeros(num_samples, np.int32))
    plain = pa.array(np.ones(num_samples, np.int8))
    columns = [keys, zeros, pa.array(rows), ints, ints, ints, ints, plain]
    texts = [caption_of(n) for n in range(num_samples)]
    urls = pa.array([url_of(n) for n in range(num_samples)], pa.large_string())
    schema = pa.schema([pa.field("value", urls.type, nullable=False)])
    none = [pa.array([], pa.large_string())] * len(layout.REJECTED_SCHEMA)
    files = {
        "samples.arrow": pa.RecordBatch.from_arrays(columns, schema=layout.SAMPLE_SCHEMA),
        "captions/caption.arrow": caption_batch(texts, encode_captions(texts), rows),
        "columns/url.arrow": pa.RecordBatch.from_arrays([urls], schema=schema),
        "rejected.arrow": pa.RecordBatch.from_arrays(none, schema=layout.REJECTED_SCHEMA),
    }
    for name, batch in files.items():
        write_batch(directory / name, batch)
    shard = {"location": "0.tar", "size_bytes": 1, "mtime_ns": 0, "version": "",
             "head_tail_crc32": 0, "num_samples": num_samples}  # fmt: skip
    manifest = {"format_version": layout.FORMAT_VERSION, "fingerprint": "f" * 64,
                "tokenizer": "open_clip.SimpleTokenizer", "captions": "txt",
                "options": ScanOptions().to_json(), "rejections": {},
                "num_samples": num_samples, "shards": [shard], "files": {}}  # fmt: skip
    (directory / "index.json").write_text(json.dumps(manifest), encoding="utf-8")
    return open_index(directory)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """200 samples."""
    return write_index(tmp_path / "index", 200)
