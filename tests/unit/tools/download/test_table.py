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
from tessera.tools.download.table.prepare import prepare_table as prepare
from tessera.tools.download.table.prepare import write_retry_table
from tessera.tools.download.table.summary import load_summary


def url(number: int) -> str:
    return f"https://host{number % 7}.example/{number}.jpg"


def write(folder: Path, content: bytes | str, name: str = "table.tsv") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def plain(numbers: range, separator: str = "\t") -> str:
    return "".join(f"{url(n)}{separator}caption {n}\n" for n in numbers)


def records(folder: Path) -> list[dict]:
    return [
        row for part in sorted(folder.glob("part-*")) for row in pq.read_table(part).to_pylist()
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
        "emoji \N{DOG FACE}, combining e\u0301, <PERSON>",
        "  spaces at both ends  ",
        "line\u2028separator and \x0b \x0c \x85 are no line ends",
        "nul \x00 and \x1c control",
        "back\\slash \\n \\t",
    ]
    text = "".join(f"{url(n)}\t{caption}\n" for n, caption in enumerate(captions))
    summary = prepare(write(tmp_path, text), tmp_path / "out/table")
    assert rows_of(tmp_path / "out/table") == {n: (url(n), c) for n, c in enumerate(captions)}
    assert summary.num_source_rows == summary.num_rows == len(captions)
    assert (summary.repairs, summary.dropped, summary.oddities) == ({}, {}, {})


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
        url(17).encode() + b"\t" + b"x" * 70_000,  # 17
        url(18).encode() + b"\tlast, without a line end",  # 18
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
        18: (url(18), "last, without a line end"),
    }
    names = ("bom", "crlf", "undecodable_bytes", "url_bytes_encoded", "url_spaces")
    assert summary.repairs == dict.fromkeys((*names, "swapped_columns"), 1)
    assert summary.oddities == {"extra_tabs": 1, "line_break_in_caption": 1}
    assert summary.dropped == {
        "empty_line": 1,
        "missing_url": 2,
        "missing_caption": 3,
        "text_too_long": 1,
        "duplicate_url": 1,
        "duplicate_url_other_caption": 1,
    }
    assert summary.examples["missing_caption"] == [5, 6, 7]
    assert summary.examples["duplicate_url_other_caption"] == [13]
    assert summary.num_rows + sum(summary.dropped.values()) == summary.num_source_rows == 19
    told = "\n".join(summary.describe())
    assert all(name in told for name in (*summary.repairs, *summary.oddities, *summary.dropped))


def test_csv_is_read_with_its_quotes(tmp_path: Path) -> None:
    buffer = io.StringIO()
    captions = ['a "quoted" dog', "a, b", "two\nlines", "two\r\nlines", "", " x "]
    writer = csv.writer(buffer)
    writer.writerow(["caption", "url"])
    writer.writerows((caption, url(n)) for n, caption in enumerate(captions))
    text = "\ufeff" + buffer.getvalue() + "\r\n" + f"unquoted, comma,{url(7)}\r\n"
    content = text.encode() + b"bad \xff byte," + url(8).encode() + b"\r\n"
    summary = prepare(write(tmp_path, content, "t.csv"), tmp_path / "table")
    assert rows_of(tmp_path / "table") == {
        **{n: (url(n), caption) for n, caption in enumerate(captions) if caption},
        7: (url(7), "unquoted, comma"),
        8: (url(8), "bad \ufffd byte"),
    }
    assert summary.dropped == {"missing_caption": 1, "empty_line": 1}
    assert summary.repairs == {"bom": 1, "extra_separators": 1, "undecodable_bytes": 1}


@pytest.mark.parametrize("bad", ['"a "quoted" dog"', '"never closed', 'a 5" nail', '"', '"" two'])
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


@pytest.mark.parametrize("separator", [";", "|", ",", "\t", "~"])
@pytest.mark.parametrize("header", [True, False])
def test_any_separator_is_found_or_given(tmp_path: Path, separator: str, header: bool) -> None:
    quoted = '"a dog, a cat"' if separator == "," else "a dog, a cat"
    lines = [f"url{separator}title"] * header + [f"{url(n)}{separator}{quoted}" for n in range(9)]
    path, given = write(tmp_path, "\n".join(lines), "t.csv"), {}
    if separator == "~":
        given["delimiter"] = "~"
        with pytest.raises(ValueError, match="one character"):
            prepare(path, tmp_path / "table", delimiter="~~")
    prepare(path, tmp_path / "table", **given)
    assert rows_of(tmp_path / "table") == {n: (url(n), "a dog, a cat") for n in range(9)}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-8-sig"])
def test_encodings_are_found(tmp_path: Path, encoding: str) -> None:
    captions = [f"caf\u00e9 \u201cna\u00efve\u201d {n}" if n % 2 else f"x {n}" for n in range(9)]
    text = "url,caption\n" + "".join(f"{url(n)},{text}\n" for n, text in enumerate(captions))
    path = write(tmp_path, text.encode(encoding), "t.csv")
    assert not prepare(path, tmp_path / "table").dropped
    assert rows_of(tmp_path / "table") == {n: (url(n), text) for n, text in enumerate(captions)}
    prepare(path, tmp_path / "given", encoding=encoding.removesuffix("-sig"))
    assert rows_of(tmp_path / "given") == rows_of(tmp_path / "table")


def test_headers_old_line_ends_and_lists_of_captions(tmp_path: Path) -> None:
    lines = ["id\tURL\tTEXT", f"7\t{url(0)}\ta dog", f"8\t{url(1)}\ta\tcat", f"9\t{url(2)}"]
    summary = prepare(write(tmp_path, "\n" + "\r\n".join(lines)), tmp_path / "table")
    assert rows_of(tmp_path / "table") == {0: (url(0), "a dog"), 1: (url(1), "a\tcat")}
    assert (summary.ignored_columns, summary.dropped) == (["id"], {"missing_caption": 1})
    assert summary.repairs == {"crlf": 2}
    lines = [f'{url(0)},"[""a dog"", ""two""]"', f"{url(1)},\"['a cat', 'x']\"", f"{url(2)},[sic]"]
    summary = prepare(write(tmp_path, "\r".join(lines), "t.csv"), tmp_path / "lists")
    assert [caption for _, caption in sorted(rows_of(tmp_path / "lists").values())] == [
        "a dog", "a cat", "[sic]",
    ]  # fmt: skip
    assert summary.repairs == {"several_captions": 2}
    assert "one row for each" in summary.warnings[0]


@pytest.mark.parametrize(
    ("content", "name", "error", "message"),
    [
        ("".join(f"{url(n)}\t{'x' * (n % 3 == 0)}\n" for n in range(90)), "t.tsv", RuntimeError,
         "60 of 90 rows"),
        (f"{url(0)}\t\n{url(1)}\t \n", "t.tsv", ValueError, "no usable row: 2 missing_caption"),
        (f"{url(0)}~a\n", "t.txt", ValueError, "--delimiter"),
        ("<!DOCTYPE html>", "t.tsv", ValueError, "web page"),
        (b"PK\x03\x04", "t.tsv", ValueError, "zip"),
        ("", "t.tsv", ValueError, "is empty"),
        ("[\n]", "t.json", ValueError, "one object a line"),
        (f"a\tb\tc\n{url(0)}\t{url(1)}\tx\n", "t.tsv", ValueError, "give --url-column"),
        (gzip.compress(os.urandom(99_999).hex().encode())[:-9], "t.tsv.gz", ValueError, "fetch it"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(
    tmp_path: Path, content: bytes | str, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(write(tmp_path, content, name), tmp_path / "table")
    assert [path.name for path in tmp_path.iterdir()] == [name]


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


@pytest.mark.parametrize("kind", ["dictionary", "one text", "brotli", "gzip", "many captions"])
def test_a_small_table_that_unpacks_to_gigabytes_stays_bounded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bomb.parquet"
    urls = [url(n) for n in range(3000)]
    if kind == "gzip":
        bomb = gzip.compress(f"{url(0)}\ta\n".encode() * 9 + bytes(1 << 30), 9)
        path = Path(write(tmp_path, bomb, "b.tsv.gz"))
    elif kind == "many captions":
        same = pa.array(["http://a.example/1.jpg"]).take(pa.array([0] * 200_000))
        words = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000), pa.array(["x" * 1000]))
        pq.write_table(pa.table({"url": same, "caption": words}), path, compression="zstd")
    elif kind == "brotli":
        table = pa.table({"url": urls[:2], "caption": pa.array(["a" * (1 << 28)] * 2)})
        pq.write_table(table, path, compression="brotli", use_dictionary=False)
    else:
        text = "x" * (1 << (20 if kind == "dictionary" else 27))
        words = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array([text]))
        pq.write_table(pa.table({"url": urls, "caption": words}), path, compression="brotli")
    assert path.stat().st_size < 1_200_000
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from tessera.tools.download.table.prepare import prepare_table\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: prepare_table(sys.argv[1], Path(sys.argv[2]))\n"
        "except (ValueError, RuntimeError) as error: pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "table")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert int(done.stdout) < 700, "megabytes"


def test_jsonl(tmp_path: Path) -> None:
    objects = [
        {"url": url(0), "text": "a\tdog\nand \u2028 more", "score": 1},
        {"url": url(1), "text": None},
        {"url": 5, "text": "no url"},
        {"url": url(4), "text": "half a pair \ud83d here"},
        *({"url": url(n), "text": ["first", "second"]} for n in range(10, 15)),
    ]
    lines = [json.dumps(item).encode() for item in objects]
    lines += [b"{broken", b"", b"[1, 2]", b'{"url": "' + url(9).encode() + b'", "text": "\xe9"}']
    summary = prepare(write(tmp_path, b"\n".join(lines), "t.jsonl"), tmp_path / "table")
    assert rows_of(tmp_path / "table") == {
        0: (url(0), "a\tdog\nand \u2028 more"),
        3: (url(4), "half a pair \ufffd here"),
        12: (url(9), "\ufffd"),
        **{n - 6: (url(n), "first") for n in range(10, 15)},
    }
    dropped = {"missing_caption": 1, "missing_url": 1, "not_json": 2, "empty_line": 1}
    assert summary.dropped == dropped
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
    summary = prepare(str(tmp_path / "t.parquet"), tmp_path / "table")
    assert summary.columns == ["row_id", "url", "caption", "uid", "source_original_width", "lang"]
    assert (summary.ignored_columns, summary.dropped) == (["boxes"], {"missing_url": 1})
    found = sorted(tuple(row.values()) for row in records(tmp_path / "table"))
    assert found == [(0, url(0), "a dog", "a", 1, "en"), (2, url(2), "caf\ufffd", "c", 3, "en")]


def test_folder_of_tables_numbers_rows_through(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder, f"url\tcaption\n{url(0)}\ta\n{url(1)}\tb\n", "a.tsv")
    write(folder, f"url\tcaption\n{url(2)}\tc\n{url(0)}\ta\n", "b.tsv")
    write(folder, "notes", "README.md")
    summary = prepare(str(folder), tmp_path / "table")
    assert rows_of(tmp_path / "table") == {0: (url(0), "a"), 1: (url(1), "b"), 2: (url(2), "c")}
    assert [Path(file["path"]).name for file in summary.source_files] == ["a.tsv", "b.tsv"]
    assert prepare(str(folder), tmp_path / "limited", limit=3).num_rows == 3
    write(folder, "{}", "c.jsonl")
    with pytest.raises(ValueError, match="several kinds"):
        prepare(str(folder), tmp_path / "other")
    pq.write_table(pa.table({"url": [url(5)], "text": ["x"]}), folder / "train-00000.parquet")
    assert prepare(str(folder), tmp_path / "hub").num_rows == 1  # parquet files come first


@pytest.mark.parametrize("packer", ["gzip", "bz2", "lzma"])
def test_packed_tables_give_the_same_rows_in_parts_of_the_size_asked_for(
    tmp_path: Path, packer: str
) -> None:
    packed = __import__(packer).compress(plain(range(250)).encode())
    summary = prepare(write(tmp_path, packed), tmp_path / "table", rows_per_part=100)
    assert packer in summary.format
    assert summary.part_rows == [100, 100, 50]
    parts = sorted((tmp_path / "table").glob("*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [100, 100, 50]
    assert rows_of(tmp_path / "table") == {n: (url(n), f"caption {n}") for n in range(250)}


def test_same_command_keeps_the_table_and_other_ones_are_refused(tmp_path: Path) -> None:
    path, folder = write(tmp_path, plain(range(50))), tmp_path / "table"
    first = prepare(path, folder)
    stamp = (folder / "part-00000.parquet").stat().st_mtime_ns
    assert prepare(path, folder) == first == load_summary(folder)
    assert prepare(write(tmp_path, plain(range(50)), "copy.tsv"), folder) == first
    os.utime(path, (1, 1))
    assert prepare(path, folder) == first  # same content, other time
    assert (folder / "part-00000.parquet").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="seed 0, now 1"):
        prepare(path, folder, seed=1)
    write(tmp_path, plain(range(49)))
    with pytest.raises(ValueError, match="other content"):
        prepare(path, folder)
    with pytest.raises(ValueError, match="was made from"):
        prepare("https://h.example/t.tsv", folder)
    Path(path).unlink()
    assert prepare(path, folder) == first  # no longer needed
    with pytest.raises(FileNotFoundError):
        prepare(str(tmp_path / "typo.tsv"), folder)


def test_foreign_damaged_and_unfinished_folders(tmp_path: Path) -> None:
    path = write(tmp_path, plain(range(2)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no table\.json"):
        prepare(path, tmp_path / "full")
    left = tmp_path / ".table.partial"  # what a kill leaves
    left.mkdir()
    (left / "part-00000.parquet").write_bytes(b"half")
    prepare(path, tmp_path / "table", rows_per_part=1)
    assert not left.exists()
    (tmp_path / "table/part-00001.parquet").unlink()
    with pytest.raises(ValueError, match="holds 1 parts"):
        prepare(path, tmp_path / "table")
    (tmp_path / "table/table.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99"):
        load_summary(tmp_path / "table")


def test_number_of_rows_of_the_official_file_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, plain(range(2)), "cc12m.tsv")
    assert "the official file has 12423374" in prepare(path, tmp_path / "one").warnings[0]
    monkeypatch.setattr(table_module, "CC12M_BYTES", Path(path).stat().st_size)
    with pytest.raises(RuntimeError, match="gave 2 rows"):
        prepare(path, tmp_path / "two")
    monkeypatch.setattr(table_module, "CC12M_ROWS", 2)
    assert prepare(path, tmp_path / "two").warnings == []


def test_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = write(tmp_path, plain(range(2))), table_module.describe_file

    def grows(read: Path) -> dict:
        described = real(read)
        read.write_text(plain(range(3)))
        return described

    monkeypatch.setattr(table_module, "describe_file", grows)
    with pytest.raises(OSError, match="changed while it was read"):
        prepare(path, tmp_path / "table")


def test_retry_table_keeps_ids_and_columns(tmp_path: Path) -> None:
    first = prepare(write(tmp_path, plain(range(50))), tmp_path / "table")
    rows = pa.array(range(0, 50, 5))
    made = write_retry_table(tmp_path / "table", rows, tmp_path / "retry/table", pass_number=1)
    assert made == load_summary(tmp_path / "retry/table")
    found = rows_of(tmp_path / "retry/table")
    assert found == {n: (url(n), f"caption {n}") for n in range(0, 50, 5)}
    assert (made.pass_number, made.columns, made.source) == (1, first.columns, first.source)
    with pytest.raises(ValueError, match="holds 1 of the 2 rows"):
        write_retry_table(tmp_path / "table", pa.array([7, 70]), tmp_path / "no", pass_number=1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    captions=st.lists(
        st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"").replace(b"\t", b"")), min_size=1
    )
)
def test_any_bytes_in_captions_are_kept_or_counted(
    tmp_path_factory: pytest.TempPathFactory, captions: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    # More plain rows than others, so that the number of columns is not in doubt.
    head = f"{url(1000)}\tplain\n".encode() * len(captions)
    lines = b"".join(url(n).encode() + b"\t" + c + b"\n" for n, c in enumerate(captions))
    summary = prepare(write(folder, head + lines), folder / "table", encoding="utf-8")
    texts = [caption.removesuffix(b"\r").decode("utf-8", "replace") for caption in captions]
    kept = {n + len(texts): (url(n), text) for n, text in enumerate(texts) if text.strip()}
    assert rows_of(folder / "table") == {0: (url(1000), "plain"), **kept}
    assert summary.num_rows + sum(summary.dropped.values()) == summary.num_source_rows
