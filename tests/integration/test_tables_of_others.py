"""Tables as people have them, through make_shards and add_captions (issue 18: 4, 13, 23, 28)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tessera.pipeline.index.caption_readers import TableReader
from tessera.tools.sharding import (
    ImageOptions,
    PackOptions,
    SourceOptions,
    make_shards,
    open_source,
)

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["a café, in Köln", "two dogs; one cat", "a red | green flag", "a man"]
"""Each holds what one of the formats uses as its separator."""
ROWS = [(f"img/{number}.jpg", text) for number, text in enumerate(TEXTS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for number in range(len(TEXTS)):
        pixels = np.full((24, 32, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "img" / f"{number}.jpg")
    return tmp_path


def quoted(separator: str, names: tuple[str, str] = ("filepath", "title")) -> str:
    rows = [names, *ROWS]
    lines = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    return "".join(f"{line}\n" for line in lines)


def coco() -> str:
    images = [{"id": number, "file_name": path} for number, (path, _) in enumerate(ROWS)]
    notes = [
        {"id": 9, "image_id": number, "caption": text} for number, (_, text) in enumerate(ROWS)
    ]
    return json.dumps({"info": {"year": 2014}, "images": images, "annotations": notes})


FORMATS: dict[str, Callable[[], str | bytes]] = {
    "commas.csv": lambda: quoted(","),
    "open_clip.csv": lambda: quoted("\t"),
    "semicolons.csv": lambda: quoted(";"),
    "pipes.csv": lambda: quoted("|", ("image_name", " comment")),
    "windows.csv": lambda: quoted(",").encode("cp1252"),
    "excel.csv": lambda: quoted("\t").encode("utf-16"),
    "big_endian.csv": lambda: quoted(",").encode("utf-16-be"),
    "captions.txt": lambda: quoted(",", ("image", "caption")),
    "Flickr8k.token.txt": lambda: "".join(f"{path}#0\t{text}\n" for path, text in ROWS),
    "list.json": lambda: json.dumps([{"id": 1, "image": p, "caption": t} for p, t in ROWS]),
    "map.json": lambda: json.dumps(dict(ROWS)),
    "coco.json": coco,
    "lines.jsonl": lambda: "".join(json.dumps({"image": p, "text": t}) + "\n" for p, t in ROWS),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_pictures_and_captions(folder: Path, name: str) -> None:
    content = FORMATS[name]()
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    source = open_source(folder / name, SourceOptions())
    assert source.skipped == []
    found = [(draft.file_name, draft.captions) for draft in source.drafts]
    assert found == [(path, [text]) for path, text in ROWS]


def test_delimiter_and_encoding_can_be_named(folder: Path) -> None:
    content = "a:b\n" + "".join(f"{path}:{text}\n" for path, text in ROWS)
    (folder / "t.csv").write_bytes(content.encode("cp1250"))
    options = SourceOptions(image_column="a", caption_column="b", delimiter=":", encoding="cp1250")
    source = open_source(folder / "t.csv", options)
    assert [draft.captions[0] for draft in source.drafts] == TEXTS


@pytest.mark.parametrize(
    ("options", "message"),
    [({"delimiter": "ab"}, "one character"), ({"encoding": "cp9999"}, "no encoding 'cp9999'")],
)
def test_a_wrong_delimiter_or_encoding_is_refused(
    folder: Path, options: dict[str, str], message: str
) -> None:
    (folder / "t.csv").write_text(quoted(","))
    with pytest.raises(ValueError, match=message):
        open_source(folder / "t.csv", replace(SourceOptions(), **options))


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("""["a dog", "it's two"]""", ["a dog", "it's two"]),
        ("""['a dog', "it's two"]""", ["a dog", "it's two"]),
        ("""['a dog'\n 'two dogs']""", ["a dog", "two dogs"]),
        (r"""['caf\xe9', 'a \'quoted\' dog',]""", ["café", "a 'quoted' dog"]),
        ("[photo of a dog]", ["[photo of a dog]"]),
        ("['a dog' and more]", ["['a dog' and more]"]),
        ("[]", ["[]"]),
    ],
)
def test_a_cell_that_spells_a_list_is_several_captions(
    folder: Path, cell: str, texts: list[str]
) -> None:
    pa_table = pa.table({"image": ["img/0.jpg"], "captions": [cell]})
    pq.write_table(pa_table, folder / "t.parquet")
    escaped = cell.replace('"', '""')
    (folder / "t.csv").write_text(f'image,captions\nimg/0.jpg,"{escaped}"\n')
    for name in ("t.csv", "t.parquet"):
        source = open_source(folder / name, SourceOptions())
        assert source.drafts[0].captions == texts
        assert source.has_lists == (texts != [cell])
        reader = TableReader(files=(folder / name,), text_columns=("captions",), key_column="image")
        assert next(iter(reader.batches())).texts == [texts]


def embedded(first: int, count: int, folder: Path) -> pa.Table:
    numbers = range(first, first + count)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [
        {"bytes": (folder / "img" / f"{n}.jpg").read_bytes(), "path": f"photo {n}.jpg"}
        for n in numbers
    ]
    texts = [TEXTS[n] for n in numbers]
    return pa.table(
        {"image": pa.array(cells, kind), "caption": texts, "score": [n / 4 for n in numbers]}
    )


def test_a_folder_of_parquets_is_one_data_set_by_split(folder: Path) -> None:
    data = folder / "set" / "data"
    data.mkdir(parents=True)
    pq.write_table(embedded(0, 2, folder), data / "train-00000-of-00002.parquet")
    pq.write_table(embedded(2, 1, folder), data / "train-00001-of-00002.parquet")
    pq.write_table(embedded(3, 1, folder), data / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="the splits test, train; choose one with --split"):
        open_source(folder / "set", SourceOptions())
    source = open_source(folder / "set", SourceOptions(split="train"))
    assert [draft.captions[0] for draft in source.drafts] == TEXTS[:3]
    report = make_shards(source, folder / "out", images=ImageOptions(), options=PackOptions())
    assert (report.num_samples, report.columns) == (3, ["file_name", "score"])
    beside = pq.read_table(folder / "out" / "00000.parquet").to_pydict()
    assert beside == {
        "key": [f"{n:09d}" for n in range(3)],
        "file_name": [f"photo {n}.jpg" for n in range(3)],
        "score": [0.0, 0.25, 0.5],
    }


def test_file_names_and_further_columns_stay_with_their_sample(folder: Path) -> None:
    rows = "".join(f"img/{n}.jpg,text {n},{n},site {n}\n" for n in (2, 0, 1))
    (folder / "t.csv").write_text("image,caption,width,site\n" + rows)
    source = open_source(folder / "t.csv", SourceOptions())
    make_shards(source, folder / "all", images=ImageOptions(), options=PackOptions())
    assert pq.read_table(folder / "all" / "00000.parquet").to_pydict() == {
        "key": ["000000000", "000000001", "000000002"],
        "file_name": ["img/2.jpg", "img/0.jpg", "img/1.jpg"],
        "width": ["2", "0", "1"],
        "site": ["site 2", "site 0", "site 1"],
    }
    source = open_source(folder / "t.csv", SourceOptions(columns=("site",)))
    report = make_shards(source, folder / "one", images=ImageOptions(), options=PackOptions())
    assert report.columns == ["file_name", "site"]
    with pytest.raises(ValueError, match="no column 'nope'"):
        open_source(folder / "t.csv", SourceOptions(columns=("nope",)))


def test_there_are_as_many_shards_as_asked_for_if_there_are_samples(folder: Path) -> None:
    (folder / "t.csv").write_text(quoted(","))
    for least, wanted in ((1, 1), (2, 2), (3, 2), (9, 4)):
        out = folder / f"out{least}"
        source = open_source(folder / "t.csv", SourceOptions())
        options = PackOptions(least_shards=least)
        report = make_shards(source, out, images=ImageOptions(), options=options)
        assert (report.num_shards, report.num_samples) == (wanted, 4)
        assert len(list(out.glob("*.parquet"))) == wanted


def test_names_are_found_with_backslashes_and_without_suffix(folder: Path) -> None:
    (folder / "t.csv").write_text("image,caption\nimg\\0.jpg,a\nimg/1,b\n")
    source = open_source(folder / "t.csv", SourceOptions())
    assert [draft.image for draft in source.drafts] == [folder / "img/0.jpg", folder / "img/1.jpg"]


def test_remedies_are_named_for_paths_that_lead_nowhere(folder: Path) -> None:
    (folder / "tables").mkdir()
    (folder / "tables" / "t.csv").write_text(quoted(","))
    (folder / "tables" / "absolute.csv").write_text(f"image,caption\n{folder}/img/0.jpg,a\n")
    source = open_source(folder / "tables" / "t.csv", SourceOptions())
    with pytest.raises(ValueError, match="name the folder that the paths begin in with --images"):
        make_shards(source, folder / "out", images=ImageOptions(), options=PackOptions())
    source = open_source(folder / "tables" / "absolute.csv", SourceOptions())
    assert "with --images, such as --images /" in source.skipped[0].detail
    source = open_source(folder / "tables" / "absolute.csv", SourceOptions(images=Path("/")))
    assert len(source.drafts) == 1


def make_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_most_rows_skipped_is_a_failure(folder: Path) -> None:
    (folder / "t.csv").write_text("image,caption\nimg/0.jpg,good\nimg/1.jpg,\nimg/2.jpg,\n")
    done = make_run("tools/make_shards.py", folder / "t.csv", "--out", folder / "out")
    assert done.returncode == 1
    assert "2 entries of the source were skipped and only 1 taken" in done.stderr


def column_twice() -> pa.Table:
    columns = [pa.array(["img/0.jpg"]), pa.array(["a"]), pa.array(["b"])]
    return pa.Table.from_arrays(columns, names=["image", "caption", "caption"])


def test_a_column_that_comes_twice_is_refused_only_if_it_is_used(folder: Path) -> None:
    pq.write_table(column_twice(), folder / "t.parquet")
    with pytest.raises(ValueError, match="2 columns 'caption': rename all but one"):
        open_source(folder / "t.parquet", SourceOptions())
    with pytest.raises(ValueError, match="2 columns 'caption'"):
        list(
            TableReader(
                files=(folder / "t.parquet",), text_columns=("caption",), key_column="image"
            ).batches()
        )
    named = column_twice().rename_columns(["image", "extra", "extra"])
    pq.write_table(named.append_column("text", pa.array(["c"])), folder / "t.parquet")
    assert open_source(folder / "t.parquet", SourceOptions()).drafts[0].captions == ["c"]


def test_dates_beyond_python_and_texts_that_are_not_utf8(folder: Path) -> None:
    late = pa.array([10_000_000, 0], pa.int32()).cast(pa.date32())
    offsets = pa.array([0, 3, 6], pa.int32()).buffers()[1]
    damaged = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"dogd\xc2g")])
    names = pa.array(["img/0.jpg", "img/1.jpg"])
    pq.write_table(
        pa.table({"image": names, "caption": damaged, "seen": late}), folder / "t.parquet"
    )
    source = open_source(folder / "t.parquet", SourceOptions())
    assert [draft.kept for draft in source.drafts] == [{"seen": "29349-01-26"}]
    assert source.skipped[0].where == "row 1"
    assert "not UTF-8" in source.skipped[0].detail
    reader = TableReader(
        files=(folder / "t.parquet",), text_columns=("caption",), key_column="image"
    )
    with pytest.raises(ValueError, match=r"t\.parquet, row 1: a text is not UTF-8"):
        list(reader.batches())


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()])
def test_keys_are_text_or_its_bytes(folder: Path, kind: pa.DataType) -> None:
    keys = pa.array(["000", "001"]).cast(kind)
    pq.write_table(pa.table({"key": keys, "caption": ["a", "b"]}), folder / "t.parquet")
    reader = TableReader(files=(folder / "t.parquet",), text_columns=("caption",), key_column="key")
    assert next(iter(reader.batches())).keys == ["000", "001"]


def test_keys_that_became_numbers_with_a_fraction_are_refused(folder: Path) -> None:
    pq.write_table(pa.table({"key": [0.0, 1.0], "caption": ["a", "b"]}), folder / "t.parquet")
    reader = TableReader(files=(folder / "t.parquet",), text_columns=("caption",), key_column="key")
    with pytest.raises(ValueError, match="write the column as text"):
        list(reader.batches())


def bomb(kind: str) -> pa.Table:
    """A table of some kilobytes that stands for gigabytes."""
    if kind == "one long page":
        return pa.table({"image": ["img/0.jpg"] * 4, "caption": ["a" * 100_000_000] * 4})
    if kind == "one long value":
        indices = pa.array(np.zeros(4000, np.int32))
        texts = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * 4_000_000]))
        return pa.table({"image": ["img/0.jpg"] * 4000, "caption": texts})
    if kind == "one long list":
        values = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(60_000_000, np.int32)), pa.array(["a b c"])
        )
        lists = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
        return pa.table({"image": ["img/0.jpg"], "caption": lists})
    return pa.table(
        {"image": ["img/0.jpg"] * 30_000_000, "caption": pa.nulls(30_000_000, pa.string())}
    )


@pytest.mark.parametrize(
    "kind", ["one long page", "one long value", "one long list", "many empty rows"]
)
def test_a_small_file_that_unpacks_to_gigabytes_costs_neither_memory_nor_time(
    folder: Path, kind: str
) -> None:
    path = folder / "t.parquet"
    use_dictionary = kind != "one long page"
    pq.write_table(
        bomb(kind), path, compression="zstd", use_dictionary=use_dictionary, row_group_size=2**30
    )
    assert path.stat().st_size < 200_000
    script = (
        "import sys; from pathlib import Path\n"
        "from tessera.pipeline.index.caption_readers import TableReader\n"
        "from tessera.tools.sharding import SourceOptions, open_source\n"
        "path = Path(sys.argv[1])\n"
        "for read in (lambda: list(TableReader(files=(path,), text_columns=('caption',),\n"
        "                 key_column='image').batches()),\n"
        "             lambda: open_source(path, SourceOptions())):\n"
        "    try: print('read', len(str(type(read()))))\n"
        "    except ValueError as error: print('refused', error)\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.split('VmHWM:')[1].split()[0])\n"
    )
    done = make_run("-c", script, path)
    assert done.returncode == 0, done.stderr
    *said, peak_kib = done.stdout.splitlines()
    assert int(peak_kib) < 800_000, said
    assert "refused" in said[0], said
