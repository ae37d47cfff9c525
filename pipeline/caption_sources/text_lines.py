r"""Lines of text files, split where Python's universal newlines split them and nowhere else.

LaCLIP's files hold one rewrite a line, written and read with `open(...)`: lines end at `\n`, `\r`
or `\r\n`. `str.splitlines` would also split at U+2028, U+0085 and five more, and shift all texts
behind such a letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


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


def not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    """An error that names the line; the decoder knows only the place in its buffer."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if any("\udc80" <= letter <= "\udcff" for letter in line):
                msg = f"{path}, line {number}: not UTF-8 ({error.reason}): {line[:80]!a}"
                return ValueError(f"{msg}; convert the file, for instance with iconv")
    return ValueError(f"{path}: not UTF-8 ({error.reason})")
