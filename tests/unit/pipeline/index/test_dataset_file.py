"""`dataset.json` beside shards says what an index takes; an explicit option comes first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.pipeline.index import open_index
from tessera.pipeline.index.dataset_file import DatasetFile, read_dataset_file
from tessera.pipeline.index.sources import described
from tests.conftest import sample_members, write_tar

ROOT = Path(__file__).resolve().parents[4]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )


def test_what_was_written_is_read_and_the_rest_refused(tmp_path: Path) -> None:
    written = DatasetFile(captions="json:captions", columns=("a", "b:float"), file_name="a")
    assert read_dataset_file(str(tmp_path)) is None
    written.write(tmp_path)
    assert read_dataset_file(str(tmp_path)) == written
    for content, message in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 7}', "has format 7"),
        ('{"format": 1, "columns": 3}', "is damaged"),
    ):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_dataset_file(str(tmp_path))


def test_folders_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    assert described(map(str, folders)) is None
    DatasetFile(captions="json:captions", columns=("x",)).write(folders[0])
    with pytest.raises(ValueError, match=r"json:captions.*txt.*name --captions for all"):
        described(map(str, folders))
    DatasetFile(captions="json:captions", columns=("y",)).write(folders[1])
    found = described(map(str, folders))
    assert found is not None
    assert (found.captions, found.columns) == ("json:captions", ("x", "y"))


def test_what_make_shards_packed_is_indexed_whole_by_the_plain_command(tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        name, data = sample_members(number)[0]
        (tmp_path / name).write_bytes(data)
        rows += [{"image": name, "caption": f"caption {each} of {number}"} for each in range(5)]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    packed = run("tools/make_shards.py", table, "--out", tmp_path / "shards")
    assert packed.returncode == 0, packed.stderr
    done = run("tools/index_shards.py", tmp_path / "shards", "--out", tmp_path / "index")
    assert done.returncode == 0, done.stderr
    assert "says --captions json:captions" in done.stdout
    assert open_index(tmp_path / "index").captions().num_texts == 15
    plain = run(
        "tools/index_shards.py", tmp_path / "shards", "--out", tmp_path / "plain",
        "--captions", "txt",
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    assert open_index(tmp_path / "plain").captions().num_texts == 3
    assert "--captions json:captions takes them all" in plain.stdout


def test_columns_come_along(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    members = [
        (name, json.dumps({"url": "http://a"}).encode() if name.endswith("json") else data)
        for name, data in sample_members(0)
    ]
    write_tar(tmp_path / "shards" / "0.tar", members)
    DatasetFile(columns=("url",)).write(tmp_path / "shards")
    done = run("tools/index_shards.py", tmp_path / "shards", "--out", tmp_path / "index")
    assert done.returncode == 0, done.stderr
    assert open_index(tmp_path / "index").column("url").to_pylist() == ["http://a"]
