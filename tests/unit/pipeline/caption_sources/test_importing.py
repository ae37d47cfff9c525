from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.arrow_file import write_batch
from tessera.pipeline.index.caption_readers import RowBatch, ShardFieldReader
from tessera.pipeline.index.import_captions import ImportOptions, ImportReport, import_captions
from tessera.pipeline.index.tokenizer import encode_captions


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that lie in memory, a few at a time."""

    pairs: Sequence[tuple[str, list[str]]]
    files: tuple[Path, ...] = ()

    def batches(self) -> Iterator[RowBatch]:
        for first in range(0, len(self.pairs), 7):
            some = self.pairs[first : first + 7]
            yield RowBatch(
                first_row=first, keys=[key for key, _ in some], texts=[texts for _, texts in some]
            )


def add(index: Index, pairs: Sequence[tuple[str, list[str]]], **options: object) -> ImportReport:
    settings = ImportOptions(**options)  # pyright: ignore[reportArgumentType]
    return import_captions(index, "extra", Rows(pairs=pairs), settings)


def stored(index: Index) -> list[tuple[int, str]]:
    table = index.captions("extra")
    return list(zip(table.sample.tolist(), table.texts(np.arange(table.num_texts)), strict=True))


def key(number: int) -> str:
    return f"{number:09d}"


def test_texts_come_to_the_samples_of_their_keys(index: Index) -> None:
    order = np.random.default_rng(0).permutation(200)
    pairs = [(key(n), [f"first {n}", f"second {n}"]) for n in order]
    report = add(index, pairs)
    assert stored(index) == [
        (n, f"{which} {n}") for n in range(200) for which in ("first", "second")
    ]
    table = index.captions("extra")
    ids = encode_captions(["second 77"])[0]
    assert table.token_ids[table.token_offsets[155] : table.token_offsets[156]].tolist() == list(
        ids
    )
    assert (report.num_rows, report.num_texts, report.num_samples) == (200, 400, 200)
    assert report.coverage == 1.0


def test_a_part_is_covered_and_strangers_are_counted(index: Index) -> None:
    pairs = [(key(3), ["three words here"]), ("stranger", ["not used"]), (key(5), [])]
    report = add(index, pairs)
    assert stored(index) == [(3, "three words here")]
    assert (report.num_unknown, report.num_rows_without_text) == (1, 1)
    assert report.coverage == pytest.approx(1 / 200)


@pytest.mark.parametrize(
    ("repeats", "wanted", "num_repeated"),
    [
        ("first", ["one a", "one b"], 1),
        ("last", ["two a"], 1),
        ("all", ["one a", "one b", "two a"], 0),
    ],
)
def test_repeated_rows(index: Index, repeats: str, wanted: list[str], num_repeated: int) -> None:
    pairs = [(key(9), ["one a", "one b"]), (key(8), ["other text"]), (key(9), ["two a"])]
    report = add(index, pairs, repeats=repeats)
    assert stored(index) == [(8, "other text"), *((9, text) for text in wanted)]
    assert report.num_repeated == num_repeated


def test_samples_that_share_a_url_share_the_text_and_empty_urls_match_nothing(index: Index) -> None:
    urls = index.column("url").to_pylist()
    urls[4] = urls[7]
    schema = pa.schema([pa.field("value", pa.large_string(), nullable=False)])
    batch = pa.RecordBatch.from_arrays([pa.array(urls, pa.large_string())], schema=schema)
    path = index.directory / "columns" / "url.arrow"
    path.unlink()
    write_batch(path, batch)
    report = add(index, [(urls[7], ["a shared text"]), ("", ["of no url"])], join="url")
    assert stored(index) == [(4, "a shared text"), (7, "a shared text")]
    assert report.num_unknown == 1


def test_short_texts_keep_their_place_without_tokens(index: Index) -> None:
    report = add(index, [(key(0), ["good enough", "one", "", " \u3000 ", "&nbsp; &nbsp;"])])
    lengths = np.diff(index.captions("extra").token_offsets)
    assert (lengths > 0).tolist() == [True, False, False, False, False]
    assert (report.num_short, report.num_empty) == (4, 3)


def test_workers_give_the_same_source(index: Index) -> None:
    order = np.random.default_rng(1).permutation(200)
    pairs = [(key(n), [f"first {n}", f"second {n}"]) for n in order]
    one = add(index, pairs)
    assert one == add(index, pairs, num_workers=2, replace=True)
    other = add(index, [*pairs[1:], (pairs[0][0], ["changed text"])], replace=True)
    assert other.fingerprint != one.fingerprint


def test_rows_in_order_are_proven(index: Index) -> None:
    pairs = [("", [f"place{n} beside thing{n}"]) for n in range(200)]
    report = add(index, pairs, join="row")
    assert stored(index)[150] == (150, "place150 beside thing150")
    assert report.overlap == pytest.approx(2 / 3)


def test_rows_in_a_wrong_order_are_refused(index: Index) -> None:
    pairs = [("", [f"place{n} beside thing{n}"]) for n in range(200)]
    shifted = [*pairs[:150], ("", ["one more"]), *pairs[150:-1]]
    with pytest.raises(ValueError, match="rows 161 to 176 stand 1 line too late"):
        add(index, shifted, join="row")
    with pytest.raises(ValueError, match="199 rows, the index 200 samples"):
        add(index, pairs[:-1], join="row")
    with pytest.raises(ValueError, match="201 rows, the index 200 samples"):
        add(index, [*pairs, pairs[0]], join="row")
    assert [path.name for path in (index.directory / "captions").iterdir()] == ["caption.arrow"]


def test_rows_of_a_text_that_comes_late_are_named(index: Index) -> None:
    own = [f"place{n} beside thing{n}" for n in range(200)]
    pairs = [("", [text] if n < 105 else [text, own[n - 1]]) for n, text in enumerate(own)]
    with pytest.raises(
        ValueError, match="text 2 of the files: rows 106 to 121 stand 1 line too late"
    ):
        add(index, pairs, join="row")


def test_no_match_shows_what_both_sides_look_like(index: Index) -> None:
    with pytest.raises(ValueError, match=r"like 'a/b\.jpg', the index has ones like '0000"):
        add(index, [("a/b.jpg", ["some text"])])


def test_dry_run_counts_the_same_and_writes_nothing(index: Index) -> None:
    pairs = [(key(3), ["three words here", "one"]), ("stranger", ["not used"])]
    dry = add(index, pairs, dry_run=True)
    assert index.sources == ["caption"]
    wet = add(index, pairs)
    assert dry == dataclasses.replace(wet, fingerprint="")


def test_names_are_checked_and_sources_not_overwritten(index: Index) -> None:
    add(index, [(key(3), ["three words here"])])
    with pytest.raises(ValueError, match="there already"):
        add(index, [(key(3), ["three words here"])])
    for name in ("caption", "Big", "../up", ""):
        with pytest.raises(ValueError, match="cannot be the name"):
            import_captions(index, name, Rows(pairs=[]), ImportOptions(join="row", replace=True))


def test_a_source_names_its_index_and_is_refused_by_another(index: Index) -> None:
    report = add(index, [(key(3), ["three words here"])])
    record = index.caption_record("extra")
    assert record
    assert (record.index_fingerprint, record.fingerprint) == (index.fingerprint, report.fingerprint)
    assert record.counts["num_rows"] == 1
    manifest = json.loads((index.directory / "index.json").read_text())
    manifest["fingerprint"] = "e" * 64
    (index.directory / "index.json").write_text(json.dumps(manifest))
    changed = open_index(index.directory)
    with pytest.raises(ValueError, match="another state of the index"):
        changed.captions("extra")
    assert changed.captions("caption").num_texts == 200


def test_fields_of_the_shards_json(coloured_index: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(coloured_index.parent, tmp_path / "copy")
    index = open_index(tmp_path / "copy" / "index")
    reader = ShardFieldReader(index=index, fields=("captions", "absent"))
    report = import_captions(index, "extra", reader, ImportOptions(join="order"))
    original, added = index.captions("caption"), index.captions("extra")
    everything = np.arange(original.num_texts)
    assert added.texts(everything) == original.texts(everything)
    assert added.sample.tolist() == original.sample.tolist()
    assert report.coverage == 1.0
