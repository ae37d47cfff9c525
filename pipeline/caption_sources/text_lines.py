r"""Lines of text files, split where Python's universal newlines split them and nowhere else.

LaCLIP's files hold one rewrite a line, written and read with `open(...)`: lines end at `\n`, `\r`
or `\r\n`. `str.splitlines` would also split at U+2028, U+0085 and five more, and shift all texts
behind such a letter.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

_MAX_FIELD_CHARACTERS = 16 * 1024**2


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends; a byte order mark is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not UTF-8; the message says which.
    """
    with path.open(encoding="utf-8-sig") as file:
        try:
            for line in file:
                yield line.removesuffix("\n")
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from None


def count_lines(path: Path) -> int:
    """Number of lines, all of them UTF-8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not UTF-8; the message says which.
    """
    return sum(1 for _ in read_lines(path))


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV in UTF-8 (quotes as Excel has them) with the line that each begins at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row cannot be read or is not UTF-8; the message names the line.
    """
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        # Strict: a quote that is never closed would swallow the rows after it without a word.
        reader = csv.reader(file, strict=True)
        start = 1
        try:
            for row in reader:
                if row:
                    yield start, row
                start = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from None
        except csv.Error as error:
            raise ValueError(f"{path}, line {start}: {error}") from None


def not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    """An error that names the line; the decoder knows only the place in its buffer."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if any("\udc80" <= letter <= "\udcff" for letter in line):
                msg = f"{path}, line {number}: not UTF-8 ({error.reason}): {line[:80]!a}"
                return ValueError(f"{msg}; convert the file, for instance with iconv")
    return ValueError(f"{path}: not UTF-8 ({error.reason})")
