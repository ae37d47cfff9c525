from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from tessera.pipeline.index.laclip import LaclipReader


def caption_of(number: int) -> str:
    return f"a picture of thing{number} near place{number}"


def rewrite_of(number: int, which: int = 0) -> str:
    return f"rewritten {which}: place{number} beside thing{number}"


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_lines(path: Path, lines: Sequence[str], end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def originals(numbers: Sequence[int], suffix: str = ".jpg") -> list[list[str]]:
    return [[f"00000/{n:09d}{suffix}", caption_of(n)] for n in numbers]


def read(*files: Path) -> list[tuple[str, list[str]]]:
    reader = LaclipReader(files=files)
    return [
        (key, texts)
        for batch in reader.batches()
        for key, texts in zip(batch.keys, batch.texts, strict=True)
    ]


def rewrites(numbers: Sequence[int], which: int = 0) -> list[str]:
    return [rewrite_of(n, which) for n in numbers]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_rewrite_comes_to_its_row(tmp_path: Path, end: str) -> None:
    numbers = range(100)
    table = write_csv(tmp_path / "o.csv", originals(numbers))
    files = [write_lines(tmp_path / f"{w}.txt", rewrites(numbers, w), end) for w in range(4)]
    assert read(table, *files) == [
        (f"{n:09d}", [rewrite_of(n, w) for w in range(4)]) for n in numbers
    ]


def test_quotes_newlines_in_captions_and_odd_line_separators_shift_nothing(tmp_path: Path) -> None:
    rows = originals(range(100))
    rows[10][1] += ', said "hello",\nand\r\nleft'
    lines = rewrites(range(100))
    for place, letter in enumerate("\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"):
        lines[20 + place] = lines[20 + place] + letter + " more"
    assert len("".join(lines).splitlines()) > 1  # what would go wrong
    found = read(write_csv(tmp_path / "o.csv", rows), write_lines(tmp_path / "r.txt", lines))
    assert [texts for _, texts in found] == [[line] for line in lines]


def test_a_header_has_no_line(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "o.csv", [["image", "caption"], *originals(range(100))])
    found = read(table, write_lines(tmp_path / "r.txt", rewrites(range(100))))
    assert found[0] == ("000000000", [rewrite_of(0)])
    assert len(found) == 100


def test_webp_row_with_a_line_of_its_own_shifts_nothing(tmp_path: Path) -> None:
    rows = originals(range(100))
    rows[30][0] = "00000/000000030.webp"
    found = read(
        write_csv(tmp_path / "o.csv", rows),
        write_lines(tmp_path / "r.txt", rewrites(range(100))),
    )
    assert found == [(f"{n:09d}", [rewrite_of(n)]) for n in range(100)]


def test_webp_row_without_a_line_is_found_by_the_words(tmp_path: Path) -> None:
    rows = originals(range(100))
    rows[30][0] = "00000/000000030.webp"
    kept = [n for n in range(100) if n != 30]
    found = read(
        write_csv(tmp_path / "o.csv", rows), write_lines(tmp_path / "r.txt", rewrites(kept))
    )
    assert found == [(f"{n:09d}", [rewrite_of(n)]) for n in kept]


def test_webp_row_that_hides_a_missing_line_is_refused(tmp_path: Path) -> None:
    """The counts are those of LaCLIP's loader, but the line that is missing is another one."""
    rows = originals(range(300))
    rows[30][0] = "00000/000000030.webp"
    lines = rewrites([n for n in range(300) if n != 200])
    with pytest.raises(
        ValueError, match=r"rows 33 to 48 stand 1 line too.*line 31 \(00000/0+30\.webp"
    ):
        read(write_csv(tmp_path / "o.csv", rows), write_lines(tmp_path / "r.txt", lines))


def test_several_images_may_share_a_line(tmp_path: Path) -> None:
    rows = [[f"{copy}/{n:04d}_{copy}.jpg", caption_of(n)] for copy in range(3) for n in range(50)]
    found = read(
        write_csv(tmp_path / "o.csv", rows), write_lines(tmp_path / "r.txt", rewrites(range(50)))
    )
    assert found[101] == ("0001_2", [rewrite_of(1)])
    assert len(found) == 150


def test_redcaps_has_text_originals_and_no_keys(tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "o.txt", [caption_of(n) for n in range(100)])
    reader = LaclipReader(files=(texts, write_lines(tmp_path / "r.txt", rewrites(range(100)))))
    (batch,) = reader.batches()
    assert batch.keys == []
    assert batch.texts == [[rewrite_of(n)] for n in range(100)]
    assert reader.overlap == [0.5]


def test_a_line_lost_in_the_middle_and_one_added_behind_it_are_refused(tmp_path: Path) -> None:
    lines = rewrites(range(9000))
    lines = lines[:3000] + lines[3001:6000] + ["added"] + lines[6000:]
    table = write_csv(tmp_path / "o.csv", originals(range(9000)))
    with pytest.raises(ValueError, match="rows 3,009 to 3,024 stand 1 line too early"):
        read(table, write_lines(tmp_path / "r.txt", lines))


def test_wrong_counts_are_named(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "o.csv", originals(range(100)))
    short = write_lines(tmp_path / "short.txt", rewrites(range(97)))
    with pytest.raises(ValueError, match=r"every row: 100.*lines \(97\)"):
        read(table, short)
    with pytest.raises(ValueError, match=r"short\.txt has 97, .*long\.txt has 98"):
        read(table, short, write_lines(tmp_path / "long.txt", rewrites(range(98))))


def test_too_few_pairs_prove_nothing(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "o.csv", originals(range(15)))
    with pytest.raises(ValueError, match="15 pairs"):
        read(table, write_lines(tmp_path / "r.txt", rewrites(range(15))))


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "o.csv", originals(range(100)))
    bad = tmp_path / "r.txt"
    lines = [line.encode() for line in rewrites(range(100))]
    lines[70] = b"caf\xe9"
    bad.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ValueError, match=r"r\.txt, line 71: not UTF-8"):
        read(table, bad)


def test_an_open_quote_and_a_row_without_caption_are_named(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "r.txt", rewrites(range(100)))
    table = write_csv(tmp_path / "o.csv", originals(range(100)))
    table.write_text(table.read_text() + '1.jpg,"open\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"o\.csv, line 101: unexpected end of data"):
        read(table, lines)
    write_csv(table, [*originals(range(3)), ["alone.jpg"]])
    with pytest.raises(ValueError, match=r"o\.csv, line 4: it has no column 2"):
        read(table, lines)
