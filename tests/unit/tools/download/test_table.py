"""From any table to parquet parts: nothing is lost that is not counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.tools.download.table import prepare as table_module
from tessera.tools.download.table.prepare import prepare_table, write_retry_table
from tessera.tools.download.table.summary import TableSummary, load_summary

NUM_PLAIN = 40


def url(number: int) -> str:
    return f"https://host{number % 7}.example/{number}.jpg"


def write(folder: Path, content: bytes | str, name: str = "table.tsv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def prepare(source: Path | str, folder: Path, **options: object) -> TableSummary:
    return prepare_table(str(source), folder, **options)


def records(folder: Path) -> list[dict]:
    return [
        row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path).to_pylist()
    ]


def rows_of(folder: Path) -> dict[int, tuple[str, str]]:
    rows = records(folder)
    found = {row["row_id"]: (row["url"], row["caption"]) for row in rows}
    assert len(found) == len(rows)
    return found


def test_official_layout_is_kept_byte_for_byte(tmp_path: Path) -> None:
    captions = [
        'starts with " a quote',
        '"balanced" start',
        "emoji 👩‍🚀, combining e\u0301, <PERSON>",
        "  spaces at both ends  ",
        "line\u2028separator and \x0b \x0c \x85 are no line ends",
        "nul \x00 and \x1c control",
        "back\\slash \\n \\t",
    ]
    text = "".join(f"{url(n)}\t{caption}\n" for n, caption in enumerate(captions))
    summary = prepare(write(tmp_path, text), tmp_path / "out/table")
    assert rows_of(tmp_path / "out/table") == {n: (url(n), c) for n, c in enumerate(captions)}
    assert summary.num_source_rows == summary.num_rows == len(captions)
    assert not summary.repairs
    assert not summary.dropped
    assert not summary.oddities
    assert summary.first_rows[0] == [url(0), captions[0]]


def test_every_fault_has_a_counted_outcome(tmp_path: Path) -> None:
    lines = [
        b"\xef\xbb\xbf" + url(0).encode() + b"\tfirst",  # 0 byte-order mark
        url(1).encode() + b"\tends in CRLF\r",  # 1
        url(2).encode() + b"\tthree\tfields\there",  # 2
        url(3).encode() + b"\tcaf\xe9 and \xff",  # 3
        b"",  # 4
        url(5).encode(),  # 5 no tab: no caption
        url(6).encode() + b"\t",  # 6
        url(7).encode() + b"\t \xc2\xa0\t",  # 7 white space only
        b"a caption without a url",  # 8
        b"\talone",  # 9
        b"  " + url(10).encode() + b" \tspaces around the url",  # 10
        b"the caption comes first\t" + url(11).encode(),  # 11
        url(0).encode() + b"\tfirst",  # 12 again
        url(0).encode() + b"\tsecond",  # 13 again, other caption
        url(14).encode() + b"\ta bare\rcarriage return",  # 14
        b"https://h.example/caf\xe9.jpg\tlatin-1 in the url",  # 15
        b"no/scheme.jpg\tkept for the fetcher to refuse",  # 16
        url(17).encode() + b"\tlast, without a line end",  # 17
    ]
    summary = prepare(write(tmp_path, b"\n".join(lines)), tmp_path / "table")
    assert rows_of(tmp_path / "table") == {
        0: (url(0), "first"),
        1: (url(1), "ends in CRLF"),
        2: (url(2), "three\tfields\there"),
        3: (url(3), "caf\ufffd and \ufffd"),
        10: (url(10), "spaces around the url"),
        11: (url(11), "the caption comes first"),
        14: (url(14), "a bare\rcarriage return"),
        15: ("https://h.example/caf%E9.jpg", "latin-1 in the url"),
        16: ("no/scheme.jpg", "kept for the fetcher to refuse"),
        17: (url(17), "last, without a line end"),
    }
    assert summary.repairs == {
        "bom": 1,
        "crlf": 1,
        "undecodable_bytes": 1,
        "url_bytes_encoded": 1,
        "url_spaces": 1,
        "swapped_columns": 1,
    }
    assert summary.oddities == {"extra_tabs": 1, "line_break_in_caption": 1}
    assert summary.dropped == {
        "empty_line": 1,
        "missing_url": 2,
        "missing_caption": 3,
        "duplicate_url": 1,
        "duplicate_url_other_caption": 1,
    }
    assert summary.examples["missing_caption"] == [5, 6, 7]
    assert summary.examples["missing_url"] == [8, 9]
    assert summary.examples["duplicate_url_other_caption"] == [13]
    assert summary.num_source_rows == len(lines)
    assert summary.num_rows + sum(summary.dropped.values()) == summary.num_source_rows
    told = "\n".join(summary.describe())
    for name in (*summary.repairs, *summary.oddities, *summary.dropped):
        assert name in told


def test_caption_first_table_keeps_tabs_in_the_caption(tmp_path: Path) -> None:
    text = f"a dog\t{url(0)}\na\tcat\t{url(1)}\n{url(2)}\ta bird\n" + f"x\t{url(3)}\n" * 3
    summary = prepare(write(tmp_path, text), tmp_path / "table")
    found = rows_of(tmp_path / "table")
    assert found[1] == (url(1), "a\tcat")
    assert found[2] == (url(2), "a bird")
    assert summary.oddities == {"extra_tabs": 1}
    assert summary.repairs == {"swapped_columns": 1}
    assert summary.dropped == {"duplicate_url": 2}


def test_header_is_no_row_and_further_columns_are_told(tmp_path: Path) -> None:
    text = (
        f"\nid\tURL\tTEXT\tscore\n7\t{url(0)}\ta dog\t0.5\n8\t{url(1)}\ta\tcat\t0.4\n9\t{url(2)}\n"
    )
    summary = prepare(write(tmp_path, text), tmp_path / "table")
    assert rows_of(tmp_path / "table") == {0: (url(0), "a dog"), 1: (url(1), "a\tcat")}
    assert summary.ignored_columns == ("id", "score")
    assert summary.dropped == {"missing_caption": 1}


def test_csv_is_read_with_its_quotes(tmp_path: Path) -> None:
    buffer = io.StringIO()
    captions = ['a "quoted" dog', "a, b", "two\nlines", "two\r\nlines", "", " x "]
    writer = csv.writer(buffer)
    writer.writerow(["caption", "url"])
    writer.writerows((caption, url(n)) for n, caption in enumerate(captions))
    text = "\ufeff" + buffer.getvalue() + "\r\n" + f"unquoted, comma,{url(7)}\r\n"
    content = text.encode() + b"bad \xff byte," + url(8).encode() + b"\r\n"
    summary = prepare(write(tmp_path, content, "t.csv"), tmp_path / "table")
    found = rows_of(tmp_path / "table")
    assert found == {
        **{n: (url(n), caption) for n, caption in enumerate(captions) if caption},
        7: (url(7), "unquoted, comma"),
        8: (url(8), "bad \ufffd byte"),
    }
    assert summary.dropped == {"missing_caption": 1, "empty_line": 1}
    assert summary.oddities == {"line_break_in_caption": 2}
    assert summary.repairs == {"bom": 1, "extra_separators": 1, "undecodable_bytes": 1}


@pytest.mark.parametrize("bad", [
    '"a "quoted" dog"', '"never closed', 'a 5" nail', '"', '"a",b"', '"" two', '"a" b',
])  # fmt: skip
def test_a_bad_quote_costs_no_other_row_and_is_named(tmp_path: Path, bad: str) -> None:
    rows = [f'{url(n)},"a good ""one"", {n}"\n' for n in range(300)]
    text = f"url,caption\n{''.join(rows)}{url(300)},{bad}\n{url(301)},plain\n{''.join(rows)}"
    summary = prepare(write(tmp_path, text, "t.csv"), tmp_path / "table")
    found = rows_of(tmp_path / "table")
    assert found[301] == (url(301), "plain")
    assert all(found[n] == (url(n), f'a good "one", {n}') for n in range(300))
    assert found[300][0] == url(300)
    assert summary.dropped == {"duplicate_url": 300}
    if "bad_quote" in summary.repairs:
        assert (summary.repairs["bad_quote"], summary.examples["bad_quote"]) == (1, [300])
        assert found[300][1] == bad


@pytest.mark.parametrize("separator", [";", "|", ",", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_any_separator_is_found(tmp_path: Path, separator: str, header: bool) -> None:
    lines = [f"{url(n)}{separator}a dog, a cat" for n in range(9)]
    lines = [separator.join(line.split(separator)[:2]) for line in lines]
    text = "\n".join([f"url{separator}title", *lines] if header else lines)
    if separator == ",":
        text = text.replace("a dog, a cat", '"a dog, a cat"').replace(",a dog", ',"a dog, a cat"')
    prepare(write(tmp_path, text, "t.csv"), tmp_path / "table")
    assert rows_of(tmp_path / "table") == {n: (url(n), "a dog, a cat") for n in range(9)}


def test_a_separator_can_be_given(tmp_path: Path) -> None:
    text = "".join(f"{url(n)}~a dog\n" for n in range(9))
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match="--delimiter"):
        prepare(path, tmp_path / "none")
    prepare(path, tmp_path / "table", delimiter="~")
    assert rows_of(tmp_path / "table")[8] == (url(8), "a dog")
    with pytest.raises(ValueError, match="one character"):
        prepare(path, tmp_path / "two", delimiter="~~")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-8-sig"])
def test_encodings_are_found(tmp_path: Path, encoding: str) -> None:
    captions = [
        f"caf\u00e9 \u201cna\u00efve\u201d {n}" if n % 2 else f"plain {n}" for n in range(9)
    ]
    text = "url,caption\n" + "".join(f"{url(n)},{text}\n" for n, text in enumerate(captions))
    path = write(tmp_path, text.encode(encoding), "t.csv")
    summary = prepare(path, tmp_path / "table")
    assert rows_of(tmp_path / "table") == {n: (url(n), text) for n, text in enumerate(captions)}
    assert not summary.dropped
    prepare(path, tmp_path / "given", encoding=encoding.removesuffix("-sig"))
    assert rows_of(tmp_path / "given") == rows_of(tmp_path / "table")
    with pytest.raises(ValueError, match="not known"):
        prepare(path, tmp_path / "none", encoding="klingon")


def test_old_line_ends_and_lists_of_captions(tmp_path: Path) -> None:
    lines = [f'{url(0)},"[""a dog"", ""two""]"', f"{url(1)},\"['a cat', 'x']\"", f"{url(2)},[sic]"]
    summary = prepare(write(tmp_path, "\r".join(lines), "t.csv"), tmp_path / "table")
    assert rows_of(tmp_path / "table") == {
        0: (url(0), "a dog"), 1: (url(1), "a cat"), 2: (url(2), "[sic]"),
    }  # fmt: skip
    assert summary.repairs == {"several_captions": 2}
    assert "one row for each" in summary.warnings[0]


def test_when_most_rows_are_skipped_the_table_is_refused(tmp_path: Path) -> None:
    text = "".join(f"{url(n)}\t{'a dog' if n % 3 == 0 else ''}\n" for n in range(90))
    with pytest.raises(RuntimeError, match="60 of 90 rows"):
        prepare(write(tmp_path, text), tmp_path / "table")
    assert not (tmp_path / "table").exists()


def test_rows_of_one_host_can_be_limited_and_are_spread(tmp_path: Path) -> None:
    text = "".join(f"https://h{n % 4}.example/{n}.jpg\tcaption {n}\n" for n in range(400))
    path = write(tmp_path, text)
    summary = prepare(path, tmp_path / "table", rows_per_host=10)
    assert (summary.num_rows, summary.dropped) == (40, {"over_host_limit": 360})
    prepare(path, tmp_path / "all")
    hosts = [row["url"][9] for row in records(tmp_path / "all")]
    assert all(
        hosts[start : start + 40].count(name) < 25 for start in range(0, 400, 40) for name in "0123"
    )
    prepare(path, tmp_path / "same")
    assert records(tmp_path / "same") == records(tmp_path / "all")
    prepare(path, tmp_path / "other", seed=1)
    assert records(tmp_path / "other") != records(tmp_path / "all")


def peak_of(path: Path, folder: Path) -> tuple[int, str]:
    """Megabytes that a fresh process needs to make a table, and how that ended."""
    code = (
        "import resource, sys; from pathlib import Path;"
        "from tessera.tools.download.table.prepare import prepare_table\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: print(prepare_table(sys.argv[1], Path(sys.argv[2])).dropped)\n"
        "except (ValueError, RuntimeError) as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [sys.executable, "-c", code, str(path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    *said, peak = done.stdout.splitlines()
    return int(peak), " ".join(said)


@pytest.mark.parametrize("kind", ["dictionary", "one text", "brotli", "gzip", "many captions"])
def test_a_small_table_that_unpacks_to_gigabytes_stays_bounded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bomb.parquet"
    urls = [url(n) for n in range(3000)]
    if kind == "gzip":
        path = write(
            tmp_path, gzip.compress(f"{url(0)}\ta\n".encode() * 9 + bytes(1 << 30), 9), "b.tsv.gz"
        )
    elif kind == "many captions":
        same = pa.array(["http://a.example/1.jpg"]).take(pa.array([0] * 200_000))
        words = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000), pa.array(["x" * 1000]))
        pq.write_table(pa.table({"url": same, "caption": words}), path, compression="zstd")
    elif kind == "brotli":
        text = pa.array(["a" * (1 << 28)] * 2)
        table = pa.table({"url": urls[:2], "caption": text})
        pq.write_table(table, path, compression="brotli", use_dictionary=False)
    else:
        text = "x" * (1 << (20 if kind == "dictionary" else 27))
        words = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array([text]))
        pq.write_table(pa.table({"url": urls, "caption": words}), path, compression="brotli")
    assert path.stat().st_size < 1_200_000
    peak, said = peak_of(path, tmp_path / "table")
    assert peak < 700, said
    assert "Traceback" not in said


def test_jsonl(tmp_path: Path) -> None:
    objects = [
        {"url": url(0), "text": "a\tdog\nand \u2028 more", "score": 1},
        {"url": url(1), "text": None},
        {"url": 5, "text": "no url"},
        {"text": "no url"},
        {"url": url(4), "text": "half a pair \ud83d here"},
        {"url": url(5), "text": "a whole \U0001f600"},
    ]
    lines = [json.dumps(item).encode() for item in objects]
    lines += [b"{broken", b"", b"[1, 2]", b'{"url": "' + url(9).encode() + b'", "text": "\xe9"}']
    more = range(10, 15)
    lines += [json.dumps({"url": url(n), "text": ["first", "second"]}).encode() for n in more]
    summary = prepare(write(tmp_path, b"\n".join(lines), "t.jsonl"), tmp_path / "table")
    assert rows_of(tmp_path / "table") == {
        0: (url(0), "a\tdog\nand \u2028 more"),
        4: (url(4), "half a pair \ufffd here"),
        5: (url(5), "a whole \U0001f600"),
        9: (url(9), "\ufffd"),
        **{n: (url(n), "first") for n in more},
    }
    assert summary.dropped == {
        "missing_caption": 1,
        "missing_url": 2,
        "not_json": 2,
        "empty_line": 1,
    }
    assert summary.repairs == {"undecodable_bytes": 2, "several_captions": 5}


def test_parquet_carries_further_columns(tmp_path: Path) -> None:
    source = pa.table(
        {
            "uid": ["a", "b", "c"],
            "URL": pa.array([url(0), None, url(2)], pa.large_string()),
            "TEXT": pa.array([b"a dog", b"x", b"caf\xe9"], pa.binary()),
            "original_width": pa.array([1, 2, 3], pa.int64()),
            "lang": pa.array(["en", "de", "en"]).dictionary_encode(),
            "boxes": pa.array([[1], [2], [3]]),
        }
    )
    pq.write_table(source, tmp_path / "t.parquet")
    summary = prepare(tmp_path / "t.parquet", tmp_path / "table")
    assert summary.columns == ("row_id", "url", "caption", "uid", "source_original_width", "lang")
    assert summary.extra_columns["source_original_width"] == "original_width"
    assert summary.ignored_columns == ("boxes",)
    rows = {row["row_id"]: row for row in records(tmp_path / "table")}
    assert rows[2] == {
        "row_id": 2,
        "url": url(2),
        "caption": "caf\ufffd",
        "uid": "c",
        "source_original_width": 3,
        "lang": "en",
    }
    assert set(rows) == {0, 2}
    assert summary.dropped == {"missing_url": 1}


def test_folder_of_tables_numbers_rows_through(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder, f"url\tcaption\n{url(0)}\ta\n{url(1)}\tb\n", "a.tsv")
    write(folder, f"url\tcaption\n{url(2)}\tc\n{url(0)}\ta\n", "b.tsv")
    write(folder, "notes", "README.md")
    summary = prepare(folder, tmp_path / "table")
    assert rows_of(tmp_path / "table") == {0: (url(0), "a"), 1: (url(1), "b"), 2: (url(2), "c")}
    assert [Path(file.path).name for file in summary.source_files] == ["a.tsv", "b.tsv"]
    write(folder, "{}", "c.jsonl")
    with pytest.raises(ValueError, match="several kinds"):
        prepare(folder, tmp_path / "other")


def test_gzip_gives_the_same_rows(tmp_path: Path) -> None:
    text = "".join(f"{url(n)}\tcaption {n}\n" for n in range(500)).encode()
    prepare(write(tmp_path, text), tmp_path / "plain")
    summary = prepare(write(tmp_path, gzip.compress(text), "t.tsv.gz"), tmp_path / "packed")
    assert rows_of(tmp_path / "packed") == rows_of(tmp_path / "plain")
    assert "gzip" in summary.format


def test_gzip_cut_short_leaves_no_table(tmp_path: Path) -> None:
    lines = "".join(f"{url(n)}\t{os.urandom(400).hex()}\n" for n in range(4000)).encode()
    path = write(tmp_path, gzip.compress(lines)[:-500], "cut.tsv.gz")
    with pytest.raises(ValueError, match="cannot be read to its end"):
        prepare(path, tmp_path / "table")
    assert [p.name for p in tmp_path.iterdir()] == ["cut.tsv.gz"]


def test_parts_have_the_size_asked_for(tmp_path: Path) -> None:
    text = "".join(f"{url(n)}\tcaption {n}\n" for n in range(250))
    summary = prepare(write(tmp_path, text), tmp_path / "table", rows_per_part=100)
    assert summary.part_rows == (100, 100, 50)
    parts = sorted((tmp_path / "table").glob("*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [100, 100, 50]
    assert len(rows_of(tmp_path / "table")) == 250


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    lines = [f"{url(n)}\tcaption {n}" if n != 3 else "" for n in range(50)]
    path = write(tmp_path, "\n".join(lines))
    summary = prepare(path, tmp_path / "table", limit=10)
    assert sorted(rows_of(tmp_path / "table")) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert (summary.num_source_rows, summary.dropped) == (10, {"empty_line": 1})
    assert prepare(path, tmp_path / "table", limit=10) == summary
    with pytest.raises(ValueError, match="limit 10, now None"):
        prepare(path, tmp_path / "table")
    assert prepare(path, tmp_path / "all", limit=100).num_rows == 49
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("a", "b"):
        write(parts, f"{url(ord(name))}\ta\n{url(ord(name) + 9)}\tb\n", f"{name}.tsv")
    assert prepare(parts, tmp_path / "two", limit=3).num_rows == 3


def test_same_command_keeps_the_table_and_other_ones_are_refused(tmp_path: Path) -> None:
    text = "".join(f"{url(n)}\tcaption {n}\n" for n in range(50))
    path = write(tmp_path, text)
    folder = tmp_path / "table"
    first = prepare(path, folder)
    stamp = (folder / "part-00000.parquet").stat().st_mtime_ns
    assert prepare(path, folder) == first == load_summary(folder)
    copy = write(tmp_path, text, "copy.tsv")
    assert prepare(copy, folder) == first  # same content elsewhere
    os.utime(path, (1, 1))
    assert prepare(path, folder) == first  # same content, other time
    assert (folder / "part-00000.parquet").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="seed 0, now 1"):
        prepare(path, folder, seed=1)
    path.write_text(text.replace("caption 7", "caption x"))
    with pytest.raises(ValueError, match="other content"):
        prepare(path, folder)
    with pytest.raises(ValueError, match="was made from"):
        prepare("https://h.example/t.tsv", folder)
    path.unlink()
    assert prepare(path, folder) == first  # no longer needed
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path / "typo.tsv", folder)


def test_foreign_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, f"{url(0)}\ta\n{url(1)}\tb\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no table\.json"):
        prepare(path, tmp_path / "full")
    prepare(path, tmp_path / "table", rows_per_part=1)
    (tmp_path / "table/part-00001.parquet").unlink()
    with pytest.raises(ValueError, match="holds 1 parts"):
        prepare(path, tmp_path / "table")
    (tmp_path / "table/table.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99"):
        load_summary(tmp_path / "table")


def test_interrupted_conversion_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "".join(f"{url(n)}\tcaption {n}\n" for n in range(50)))
    real = table_module._order

    def killed(*args: object, **options: object) -> None:
        real(*args, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(table_module, "_order", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(path, tmp_path / "out/table")
    assert not (tmp_path / "out/table").exists()
    monkeypatch.undo()
    left = tmp_path / "out/.table.partial"  # what a kill leaves
    left.mkdir()
    (left / "part-00000.parquet").write_bytes(b"half")
    assert prepare(path, tmp_path / "out/table").num_rows == 50
    assert not left.exists()


def test_table_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, f"{url(0)}\t\n{url(1)}\t \n")
    with pytest.raises(ValueError, match="no usable row: 2 missing_caption"):
        prepare(path, tmp_path / "table", caption_column="1")


def test_number_of_rows_of_the_official_file_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, f"{url(0)}\ta\n{url(1)}\tb\n", "cc12m.tsv")
    summary = prepare(path, tmp_path / "one")
    assert "the official file has 12423374" in summary.warnings[0]
    monkeypatch.setattr(table_module, "CC12M_BYTES", path.stat().st_size)
    with pytest.raises(RuntimeError, match="gave 2 rows"):
        prepare(path, tmp_path / "two")
    monkeypatch.setattr(table_module, "CC12M_ROWS", 2)
    assert prepare(path, tmp_path / "two").warnings == ()


def test_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, f"{url(0)}\ta\n")
    real = table_module.describe_file

    def grows(*args: object) -> object:
        described = real(*args)  # type: ignore[arg-type]
        with path.open("a") as file:
            file.write(f"{url(1)}\tb\n")
        return described

    monkeypatch.setattr(table_module, "describe_file", grows)
    with pytest.raises(OSError, match="changed while it was read"):
        prepare(path, tmp_path / "table")


def test_retry_table_keeps_ids_and_columns(tmp_path: Path) -> None:
    text = "".join(f"{url(n)}\tcaption {n}\n" for n in range(50))
    first = prepare(write(tmp_path, text), tmp_path / "table")
    rows = pa.array(range(0, 50, 5))
    made = write_retry_table(tmp_path / "table", rows, tmp_path / "retry/table", pass_number=1)
    assert made == load_summary(tmp_path / "retry/table")
    assert made.pass_number == 1
    assert rows_of(tmp_path / "retry/table") == {
        n: (url(n), f"caption {n}") for n in range(0, 50, 5)
    }
    assert (made.columns, made.source) == (first.columns, first.source)
    with pytest.raises(ValueError, match="holds 1 of the 2 rows"):
        write_retry_table(tmp_path / "table", pa.array([7, 70]), tmp_path / "no", pass_number=1)


line_text = st.text(
    st.characters(exclude_characters="\n\r\t", exclude_categories=["Cs"]), max_size=30
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    captions=st.lists(line_text, min_size=1, max_size=30),
    url_first=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_any_caption_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], url_first: bool, ending: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    head = [f"{url(1000 + n)}\tplain" if url_first else f"plain\t{url(1000 + n)}" for n in range(5)]
    lines = [
        f"{url(n)}\t{caption}" if url_first else f"{caption}\t{url(n)}"
        for n, caption in enumerate(captions)
    ]
    text = ending.join([*head, *lines]) + ending
    summary = prepare(write(folder, text), folder / "table")
    expected = {n + 5: (url(n), caption) for n, caption in enumerate(captions) if caption.strip()}
    found = {n: row for n, row in rows_of(folder / "table").items() if n >= 5}
    assert found == expected
    assert summary.num_rows + summary.dropped.get("missing_caption", 0) == len(captions) + 5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    captions=st.lists(
        st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), min_size=1, max_size=30
    )
)
def test_any_bytes_in_captions_are_kept_or_counted(
    tmp_path_factory: pytest.TempPathFactory, captions: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    # More plain rows than others, so that the number of columns is not in doubt.
    head = f"{url(1000)}\tplain\n".encode() * NUM_PLAIN
    lines = b"".join(url(n).encode() + b"\t" + c + b"\n" for n, c in enumerate(captions))
    summary = prepare(write(folder, head + lines), folder / "table", encoding="utf-8")
    found = rows_of(folder / "table")
    replaced = 0
    for n, caption in enumerate(captions):
        caption = caption.removesuffix(b"\r")
        text = caption.decode("utf-8", "replace")
        if text.strip():
            assert found.pop(n + NUM_PLAIN) == (url(n), text)
            replaced += text.encode() != caption
    assert set(found) == {0}
    assert summary.repairs.get("undecodable_bytes", 0) == replaced
    assert summary.num_rows + sum(summary.dropped.values()) == summary.num_source_rows
