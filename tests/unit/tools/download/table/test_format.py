"""What kind of table a file is taken for, and when it is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tools.download.table.format import detect_format, looks_like_url

URL = "https://a.example/{}.jpg"


def text_table(folder: Path, text: str, name: str = "table.tsv") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


@pytest.mark.parametrize(
    ("text", "layout", "columns", "header"),
    [
        ("https://a/1.jpg\ta dog\n", "tsv", ("0", "1"), False),
        ("a dog\thttps://a/1.jpg\n", "tsv", ("1", "0"), False),
        ("url\tcaption\nhttps://a/1.jpg\ta dog\n", "tsv", ("url", "caption"), True),
        ("TEXT\tURL\na dog\thttps://a/1.jpg\n", "tsv", ("URL", "TEXT"), True),
        ("\ufeffurl\tcaption\r\nhttps://a/1.jpg\ta dog\r\n", "tsv", ("url", "caption"), True),
        ('https://a/1.jpg,"a dog, a cat"\n', "csv", ("0", "1"), False),
        ('title,link\n"a ""dog""\nruns",https://a/1.jpg\n', "csv", ("link", "title"), True),
        ('{"url": "https://a/1.jpg", "text": "a dog"}\n', "jsonl", ("url", "text"), False),
        ("//a/1.jpg\ta dog\nHTTP://a/2.jpg\ta cat\n", "tsv", ("0", "1"), False),
        ("https://a/1.jpg\ta, dog, and, more\n" * 3, "tsv", ("0", "1"), False),
    ],
)
def test_layout_columns_and_header_are_found(
    tmp_path: Path, text: str, layout: str, columns: tuple[str, str], header: bool
) -> None:
    found = detect_format(text_table(tmp_path, text))
    assert (found.layout, found.url_column, found.caption_column) == (layout, *columns)
    assert (found.header is not None) == header
    assert layout in found.describe()[0]


def test_gzip_is_seen_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "without-suffix"
    path.write_bytes(gzip.compress(b"https://a/1.jpg\ta dog\n"))
    found = detect_format(path)
    assert found.gzipped
    assert found.layout == "tsv"


def test_tabs_and_quotes_in_a_caption_do_not_shift_the_columns(tmp_path: Path) -> None:
    lines = [f"{URL.format(n)}\ta plain caption" for n in range(20)]
    lines += [f'{URL.format(n)}\t"a\tdog {n}' for n in range(9)]
    assert detect_format(text_table(tmp_path, "\n".join(lines))).columns == ("0", "1")
    with pytest.raises(ValueError, match="--caption-column"):
        detect_format(text_table(tmp_path, "\n".join(lines[18:])))


def test_names_that_contradict_the_content_are_put_right(tmp_path: Path) -> None:
    text = "url\tcaption\n" + "".join(f"a dog\t{URL.format(n)}\n" for n in range(5))
    found = detect_format(text_table(tmp_path, text))
    assert (found.url_column, found.caption_column) == ("caption", "url")
    assert "swapped" in found.notes[0]


def test_choice_can_be_overruled(tmp_path: Path) -> None:
    text = "page\timage\tcaption\thttp\nhttps://p/1\thttps://i/1.jpg\ta dog\tx\n"
    path = text_table(tmp_path, text)
    assert detect_format(path, url_column="page").url_column == "page"
    assert detect_format(path, caption_column="3").caption_column == "http"
    single = text_table(tmp_path, "https://a/1.jpg\ta, dog\n", "t.csv")
    assert detect_format(single, layout="csv").layout == "csv"


def parquet(folder: Path, **columns: pa.Array | list[object]) -> Path:
    path = folder / "table.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("names", [("url", "text"), ("URL", "TEXT"), ("image_url", "caption")])
def test_parquet_columns_are_found(tmp_path: Path, names: tuple[str, str]) -> None:
    path = parquet(
        tmp_path, **{"uid": ["x"], names[1]: ["a dog"], "w": [1], names[0]: ["https://a/1"]}
    )
    found = detect_format(path)
    assert (found.layout, found.url_column, found.caption_column) == ("parquet", *names)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"PK\x03\x04rest", "unpack it first"),
        (b"\xff\xfeh\x00", "UTF-16"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"https://a/1.jpg\ta dog\rhttps://a/2.jpg\ta cat\r", "CR"),
        (b"https://a/1.jpg\nhttps://a/2.jpg\n", "neither tabs nor commas"),
        (b"a dog\ta cat\n", "--url-column"),
        (b"https://a/1\thttps://a/2\n", "--url-column"),
        (b"https://a/1\tdeadbeef\tdeadbeef\n", "--caption-column"),
        (b'[{"url": "https://a/1.jpg"}]', "jq"),
        (b"url\tcaption\n", "nothing else"),
        (gzip.compress(b"https://a/1.jpg\ta dog\n" * 1000)[:40], "fetch it again"),
        (b"PAR1 and no more", "no whole parquet"),
        (b"x" * (2 << 20), "no line end"),
    ],
)
def test_what_is_no_table_is_refused_with_the_fix(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "table"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        detect_format(path)


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    path = text_table(tmp_path, "https://a/1.jpg\ta dog\n")
    with pytest.raises(ValueError, match="--layout must be one of"):
        detect_format(path, layout="xlsx")
    with pytest.raises(ValueError, match="has no column picture"):
        detect_format(path, url_column="picture")
    with pytest.raises(ValueError, match="both column 0"):
        detect_format(path, url_column="0", caption_column="0")
    with pytest.raises(FileNotFoundError, match="no table"):
        detect_format(tmp_path / "none.tsv")
    numbers = parquet(tmp_path, url=["https://a/1"], caption=pa.array([["a", "b"]]))
    with pytest.raises(ValueError, match="not text"):
        detect_format(numbers)


@pytest.mark.parametrize("text", ["http://a", "HTTPS://a", "//a", " ftp://a", "s3://b/c"])
def test_urls(text: str) -> None:
    assert looks_like_url(text)


@pytest.mark.parametrize("text", ["", "a dog", "a:b", "see http://a", "http://", "1//2"])
def test_no_urls(text: str) -> None:
    assert not looks_like_url(text)
