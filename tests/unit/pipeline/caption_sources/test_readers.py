from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.pipeline.index import json_tables
from tessera.pipeline.index.caption_readers import Reader, TableReader


def map_reader(*paths: Path) -> TableReader:
    return TableReader(files=paths, text_columns=("caption",), key_column="key")


def rows(reader: Reader) -> list[tuple[str, list[str]]]:
    found = []
    for batch in reader.batches():
        assert batch.first_row == len(found)
        keys = batch.keys or [""] * len(batch.texts)
        found += zip(keys, batch.texts, strict=True)
    return found


@settings(max_examples=60, deadline=None)
@given(
    document=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.text('ab\u2028"\\\n')),
    ),
    indent=st.sampled_from([None, 2]),
    chunk=st.integers(1, 40),
)
def test_json_map_equals_json_load(
    tmp_path_factory: pytest.TempPathFactory, document: dict, indent: int | None, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "map.json"
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=bool(chunk % 2)), "utf-8")
    wanted = {key: [text] if isinstance(text, str) else text for key, text in document.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_tables, "_CHUNK_CHARACTERS", chunk)
        assert dict(rows(map_reader(path))) == wanted


def test_json_map_is_never_whole_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        for number in range(60_000):
            file.write(f'{", " if number else ""}"https://x.example/{number}": "{"word " * 80}"')
        file.write("}")
    tracemalloc.start()
    count = sum(len(batch.texts) for batch in map_reader(path).batches())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60_000
    assert peak < 12e6 < path.stat().st_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "x",\n"b": "y', "line 2: .*Unterminated string"),
        ('{"a": "x"', "line 1: .*it ends early"),
        ('["a"]', "entry 1: it is no JSON object"),
        ('{"a": "x"} {}', "something follows"),
        ('{"a": 3}', "entry 1: '3' is int, not text"),
        ('{"a": "x",}', "line 1"),
        ('{"a": "\\ud83d"}', "entry 1: it holds half of a surrogate pair"),
        ("", "it ends early"),
    ],
)
def test_damaged_json_maps_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        rows(map_reader(path))


def test_files_follow_one_another(tmp_path: Path) -> None:
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    paths[0].write_text('{"a": "x", "b": ["y", "z"]}', encoding="utf-8")
    paths[1].write_text('{"a": "again"}', encoding="utf-8")
    assert rows(map_reader(*paths)) == [
        ("a", ["x"]),
        ("b", ["y", "z"]),
        ("a", ["again"]),
    ]


def test_tables_of_all_kinds_read_alike(tmp_path: Path) -> None:
    wanted = [("k0", ['say "hi"', "b0"]), ("k1", ["one, two", "b1"])]
    (tmp_path / "t.csv").write_text(
        'url,b,a\nk0,b0,"say ""hi"""\nk1,b1,"one, two"\n', encoding="utf-8"
    )
    (tmp_path / "t.tsv").write_text('url\tb\ta\nk0\tb0\tsay "hi"\nk1\tb1\tone, two\n', "utf-8")
    records = [{"url": key, "a": a, "b": b} for key, (a, b) in wanted]
    lines = "\n\n".join(json.dumps(record) for record in records)
    (tmp_path / "t.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet")
    for kind in ("csv", "tsv", "jsonl", "parquet"):
        path = tmp_path / f"t.{kind}"
        reader = TableReader(files=(path,), text_columns=("a", "b"), key_column="url")
        assert rows(reader) == wanted, kind


def test_a_cell_may_hold_several_texts_or_none(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b", "c"], "texts": [["x", "y"], None, []]})
    pq.write_table(table, tmp_path / "t.parquet")
    reader = TableReader(files=(tmp_path / "t.parquet",), text_columns=("texts",), key_column="key")
    assert rows(reader) == [("a", ["x", "y"]), ("b", []), ("c", [])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"key,caption\na,x,y\n", "line 2: 3 fields where the header has 2"),
        ("t.csv", b"key,text\na,x\n", "no column 'caption'; it has: 'key', 'text'"),
        ("t.csv", "key,caption\na,é\n".encode() + b"b,\xff\n", "line 3: it is not UTF-8"),
        ("t.tsv", b"key\tcaption\na\n", "line 2: 1 fields"),
        ("t.jsonl", b'{"key": "a", "caption": "x"}\n[1]\n', "line 2: it is no JSON object"),
        ("t.jsonl", b'{"key": "a", "caption": {}}\n', "line 1: '{}' is dict, not text"),
        ("t.jsonl", b'{"key": "a", "text": "x"}\n', "no column 'caption'"),
        ("t.parquet", b"PAR1", "is no parquet file"),
    ],
)
def test_damaged_tables_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows(TableReader(files=(path,), text_columns=("caption",), key_column="key"))


def test_keys_may_be_names_of_files(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("key,caption\nsome/00000/000012.jpg,x\n", encoding="utf-8")
    reader = TableReader(files=(path,), text_columns=("caption",), key_column="key", stem=True)
    assert rows(reader) == [("000012", ["x"])]


def test_dreamlip_long_captions_with_newlines(tmp_path: Path) -> None:
    buffer = io.StringIO()
    buffer.write("Image Path,raw_caption,shortIB_captions,longIB_captions\n")
    buffer.write('http://a/1.jpg,raw,short,"The image shows a cat.\n\nIt sleeps, ""deeply""."\n')
    path = tmp_path / "d.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8")
    reader = TableReader(
        files=(path,),
        text_columns=("shortIB_captions", "longIB_captions"),
        key_column="Image Path",
    )
    long = 'The image shows a cat.\n\nIt sleeps, "deeply".'
    assert rows(reader) == [("http://a/1.jpg", ["short", long])]
