from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.pipeline.index import ScanOptions, build_index, open_index
from tessera.pipeline.index.arrow_file import map_batch, write_batch
from tessera.pipeline.storage import head_tail_crc32


def write_shard(path: Path, keys: str, text: str = "a caption") -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 16), "red").save(buffer, "JPEG")
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for suffix, data in (("jpg", buffer.getvalue()), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def index_dir(tmp_path: Path) -> Path:
    """An index of two shards, three samples."""
    (tmp_path / "shards").mkdir()
    shards = [write_shard(tmp_path / f"shards/{n}.tar", keys) for n, keys in enumerate(("ab", "c"))]
    build_index(shards, tmp_path / "index")
    return tmp_path / "index"


def test_columns_are_read_only_views_of_the_file(index_dir: Path) -> None:
    index = open_index(index_dir)
    assert index.num_samples == 3
    assert index.shard.tolist() == [0, 0, 1]
    assert index.shard.dtype == index.size.dtype == index.width.dtype == np.int32
    assert index.offset.dtype == np.int64
    assert not index.offset.flags.writeable
    assert not index.offset.flags.owndata
    assert index.keys(np.array([2, 0])) == ["c", "a"]
    assert (index.num_rejected, index.rejections) == (0, {})


def test_an_index_of_the_first_edition_opens_and_is_scanned_again(index_dir: Path) -> None:
    assert open_index(index_dir).plain.tolist() == [1, 1, 1]
    shutil.rmtree(index_dir / "scans")
    path = index_dir / "samples.arrow"
    write_batch(index_dir / "old", map_batch(path).drop_columns(["plain"]))
    (index_dir / "old").replace(path)
    manifest = json.loads((index_dir / "index.json").read_text("utf-8"))
    manifest["files"][path.name] = path.stat().st_size
    (index_dir / "index.json").write_text(json.dumps(manifest), "utf-8")
    old = open_index(index_dir)
    assert old.plain.tolist() == [-1, -1, -1]
    shards = [record.location for record in old.shards]
    report = build_index(shards, index_dir)
    assert report.num_scanned_shards == len(shards)
    assert open_index(index_dir).plain.tolist() == [1, 1, 1]


def test_shard_records_describe_the_files(index_dir: Path) -> None:
    record = open_index(index_dir).shards[0]
    assert Path(record.location) == (index_dir.parent / "shards/0.tar").resolve()
    assert record.size_bytes == Path(record.location).stat().st_size
    assert record.head_tail_crc32 == head_tail_crc32(record.location)
    assert record.num_samples == 2


def test_index_and_shards_can_move_together(index_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("shards", "index"):
        shutil.move(tmp_path / name, moved / name)
    index = open_index(moved / "index")
    assert Path(index.shards[0].location) == (moved / "shards/0.tar").resolve()
    index.check_shards()


def test_shards_elsewhere_are_stored_absolutely(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", "a")
    build_index([shard], tmp_path / "deep/index")
    manifest = json.loads((tmp_path / "deep/index/index.json").read_text())
    assert manifest["shards"][0]["location"] == str(shard)
    assert open_index(tmp_path / "deep/index").shards[0].location == str(shard)


def test_missing_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tools/index_shards.py SHARDS --out .*nowhere"):
        open_index(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["samples.arrow", "captions/caption.arrow", "rejected.arrow"])
@pytest.mark.parametrize("fault", ["cut", "gone", "zeros"])
def test_damaged_tables_are_named(index_dir: Path, name: str, fault: str) -> None:
    path = index_dir / name
    raw = path.read_bytes()
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(raw[:-100] if fault == "cut" else bytes(len(raw)))
    with pytest.raises(ValueError, match=rf"{path.name}.*tools/index_shards\.py"):
        open_index(index_dir).captions()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 2}'])
def test_damaged_manifest_is_told(index_dir: Path, content: str) -> None:
    (index_dir / "index.json").write_text(content)
    with pytest.raises(ValueError, match="is damaged"):
        open_index(index_dir)


def test_unknown_version_is_told(index_dir: Path) -> None:
    path = index_dir / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 3}))
    with pytest.raises(ValueError, match="format version 3, this code reads version 2"):
        open_index(index_dir)


def test_index_of_other_samples_is_told(index_dir: Path) -> None:
    path = index_dir / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_samples": 4}))
    with pytest.raises(ValueError, match="3 rows"):
        open_index(index_dir)


def test_an_index_without_its_number_of_samples_is_damaged(index_dir: Path) -> None:
    path = index_dir / "index.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({n: v for n, v in content.items() if n != "num_samples"}))
    with pytest.raises(ValueError, match="lacks 'num_samples'"):
        open_index(index_dir)


def test_unknown_caption_source_lists_those_there_are(index_dir: Path) -> None:
    with pytest.raises(ValueError, match="no caption source 'llava'; it has: caption"):
        open_index(index_dir).captions("llava")


def test_unchanged_and_touched_shards_pass(index_dir: Path) -> None:
    index = open_index(index_dir)
    index.check_shards()
    os.utime(index.shards[0].location, (1, 1))
    index.check_shards()


def test_changed_shards_are_all_named(index_dir: Path) -> None:
    index = open_index(index_dir)
    for record, keys in zip(index.shards, ("ax", "cd"), strict=True):
        write_shard(Path(record.location), keys)
        os.utime(record.location, (1, 1))
    with pytest.raises(ValueError, match="2 of 2 shards changed") as caught:
        index.check_shards()
    for part in ("0.tar", "1.tar", f"--out {index_dir.resolve()}"):
        assert part in str(caught.value)


def test_vanished_shards_are_named(index_dir: Path) -> None:
    index = open_index(index_dir)
    Path(index.shards[1].location).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 shards .* are gone: .*1\.tar"):
        index.check_shards()


def test_indexing_again_is_told_with_the_options_of_the_first_time(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", "a")
    options = ScanOptions(columns=("url",), sha256=True, full_decode=False, max_image_pixels=10**6)
    build_index([shard], tmp_path / "index", options=options)
    assert ScanOptions.from_json(options.to_json()) == options
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="gone") as caught:
        open_index(tmp_path / "index").check_shards()
    words = "--no-full-decode --columns url --sha256 --max-image-pixels 1000000`"
    assert str(caught.value).endswith(words)


def test_index_survives_pickling(index_dir: Path) -> None:
    index = open_index(index_dir)
    assert pickle.loads(pickle.dumps(index)).offset.tolist() == index.offset.tolist()
