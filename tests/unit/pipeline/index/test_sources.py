"""Keys are unique within a source; whatever looks a sample up by its key knows the source."""

import json
from pathlib import Path

import pytest

from tessera.pipeline.index import Index, IndexReport, ScanOptions, build_index, open_index
from tessera.pipeline.index.caption_readers import TableReader
from tessera.pipeline.index.dataset import open_dataset
from tessera.pipeline.index.import_captions import ImportOptions, import_captions
from tessera.pipeline.index.select import Criteria, choose
from tessera.pipeline.index.sources import find_sources
from tests.conftest import sample_members, write_tar


def tar(path: Path, first: int, count: int = 4) -> None:
    """A shard of pictures whose keys begin at 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [
        (f"{number:09d}.{name.partition('.')[2]}", data)
        for number in range(count)
        for name, data in sample_members(first + number)
    ]
    write_tar(path, members)


def build(out: Path, *places: object, **options: object) -> tuple[IndexReport, Index]:
    sources = find_sources([str(place) for place in places])
    report = build_index(
        list(sources.names),
        out,
        options=ScanOptions(**options),  # pyright: ignore[reportArgumentType]
        sources=sources.names,
    )
    return report, open_index(out)


@pytest.fixture
def two(tmp_path: Path) -> Index:
    """Two folders of shards, all of whose keys are the same."""
    tar(tmp_path / "cc3m" / "00000.tar", 0)
    tar(tmp_path / "cc12m" / "00000.tar", 4)
    report, index = build(tmp_path / "index", tmp_path / "cc3m", tmp_path / "cc12m")
    assert report.num_rejected == 0
    assert report.source_sizes == {"cc12m": 4, "cc3m": 4}
    return index


def test_folders_with_the_same_keys_are_kept_apart(two: Index) -> None:
    assert two.num_samples == 8
    assert two.source_names == ["cc12m", "cc3m"]
    keys = [f"{name}:{n:09d}" for name in ("cc12m", "cc3m") for n in range(4)]
    assert two.keys(range(8)) == keys


def test_a_repeat_within_a_source_is_rejected(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tar(tmp_path / name / "00000.tar", 0)
    places = (f"one={tmp_path}/a", f"one={tmp_path}/b")
    report, index = build(tmp_path / "index", *places)
    assert index.num_samples == 4
    assert report.rejections == {"duplicate_key": 4}
    assert any("NAME=FOLDER" in hint for hint in report.hints)
    assert index.keys([0]) == ["000000000"]


def test_shards_that_number_anew_are_told_apart_by_an_option(tmp_path: Path) -> None:
    for shard in range(3):
        tar(tmp_path / "set" / f"{shard:05d}.tar", shard * 4)
    report, _ = build(tmp_path / "first", tmp_path / "set")
    assert report.rejections == {"duplicate_key": 8}
    assert any("--keys-per-shard" in hint for hint in report.hints)
    report, index = build(tmp_path / "index", tmp_path / "set", keys_per_shard=True)
    assert (report.num_samples, report.hints[:1]) == (12, report.hints[:1])
    assert index.keys([0, 11]) == ["00000/000000000", "00002/000000003"]
    assert index.keys_in_shard(2) == [f"{n:09d}" for n in range(4)]


def test_names_come_from_folders_as_far_as_needed(tmp_path: Path) -> None:
    for place in ("a/shards", "b/shards", "c"):
        tar(tmp_path / place / "0.tar", 0, 1)
    found = find_sources([str(tmp_path / p) for p in ("a/shards", "b/shards", "c/0.tar")])
    assert sorted(found.names.values()) == ["a-shards", "b-shards", "c"]
    assert set(find_sources([f"mine={tmp_path}/c"]).names.values()) == {"mine"}
    with pytest.raises(ValueError, match="of two sources"):
        find_sources([f"x={tmp_path}/c", f"y={tmp_path}/c"])


def test_lists_and_tables_by_key_are_refused_and_by_source_and_key_work(
    two: Index, tmp_path: Path
) -> None:
    wanted = tmp_path / "ids.txt"
    wanted.write_text("000000001\n")
    dataset = open_dataset(str(two.directory))
    with pytest.raises(ValueError, match="--on source_key"):
        choose(dataset, Criteria(listed=str(wanted), on="key"))
    wanted.write_text("cc3m:000000001\n")
    chosen = choose(dataset, Criteria(listed=str(wanted), on="source_key"))
    assert chosen.rows[""].tolist() == [5]
    assert choose(dataset, Criteria(where=("source == 'cc12m'",))).rows[""].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("way", ["plain", "named", "option"])
def test_captions_find_their_source(two: Index, tmp_path: Path, way: str) -> None:
    table = tmp_path / "new.jsonl"
    key = "cc3m:000000002" if way == "named" else "000000002"
    table.write_text(json.dumps({"key": key, "caption": "a new caption"}) + "\n")
    reader = TableReader(files=(table,), text_columns=("caption",), key_column="key", stem=False)
    options = ImportOptions(source="cc3m" if way == "option" else "")
    if way == "plain":
        with pytest.raises(ValueError, match=r"is that of cc12m:.* and cc3m:.*--source"):
            import_captions(two, "new", reader, options)
        return
    report = import_captions(two, "new", reader, options)
    assert (report.num_samples, report.num_unknown) == (1, 0)
    assert two.captions("new").sample.tolist() == [6]


def test_a_second_run_reads_nothing_and_keeps_the_sources(two: Index, tmp_path: Path) -> None:
    report, again = build(tmp_path / "index", tmp_path / "cc3m", tmp_path / "cc12m")
    assert report.num_scanned_shards == 0
    assert again.keys(range(8)) == two.keys(range(8))
    assert again.fingerprint == two.fingerprint
