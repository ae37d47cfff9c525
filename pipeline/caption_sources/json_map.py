"""One JSON object from URL to caption, of any size, read piece by piece.

VeCap-300M comes as ten files of this kind with about 30 M entries each, which `json.load` would
need tens of gigabytes for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.caption_sources.rows import ROWS_AT_ONCE, RowBatch, check_text, texts_of
from pipeline.caption_sources.text_lines import not_utf8

_CHUNK_CHARACTERS = 1 << 20
_MAX_ENTRY_CHARACTERS = 1 << 24
_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonMapReader:
    """JSON objects that map a key to a text or to a list of texts."""

    files: tuple[Path, ...]
    """Read one after the other."""

    def batches(self) -> Iterator[RowBatch]:
        """See `Reader`. A key that comes twice in a file is two rows."""
        first_row = 0
        for path in self.files:
            batch = RowBatch(first_row=first_row)
            for number, (key, value) in enumerate(read_entries(path), 1):
                where = f"entry {number}"
                batch.keys.append(key)
                batch.texts.append(texts_of(value, f"{path}, {where}"))
                batch.where.append(where)
                if len(batch.keys) == ROWS_AT_ONCE:
                    check_text(batch, path)
                    yield batch
                    batch = RowBatch(first_row=batch.first_row + ROWS_AT_ONCE)
            check_text(batch, path)
            yield batch
            first_row = batch.first_row + len(batch.keys)


def read_entries(path: Path) -> Iterator[tuple[str, object]]:
    """The entries of one JSON object, in the order of the file, repeated keys included.

    Memory is bounded by the longest entry, which may have 16 Mi characters.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, cut short, or not UTF-8; the message says where.
    """
    with path.open(encoding="utf-8-sig") as file:
        window = _Window(path, iter(lambda: file.read(_CHUNK_CHARACTERS), ""))
        try:
            yield from _entries(window)
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from None


class _Window:
    """The part of a file that is being parsed."""

    def __init__(self, path: Path, chunks: Iterator[str]) -> None:
        self.path = path
        self.text = ""
        self.place = 0
        self._chunks = chunks
        self._line = 1

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        chunk = next(self._chunks, "")
        if chunk:
            self._line += self.text.count("\n", 0, self.place)
            self.text, self.place = self.text[self.place :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in _SPACE:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def take(self, wanted: str) -> str:
        """Pass over one character of those wanted."""
        found = self.peek()
        if not found or found not in wanted:
            names = " or ".join(repr(each) for each in wanted)
            raise self.error(f"expected {names}, found {found!r}" if found else "it ends early")
        self.place += 1
        return found

    def value(self) -> object:
        """Decode the value that starts here."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                too_long = len(self.text) - self.place > _MAX_ENTRY_CHARACTERS
                if too_long or not self.more():
                    raise self.error(error.msg) from None
                continue
            # A number at the end of the window may go on behind it.
            if end < len(self.text) or not self.more():
                self.place = end
                return value

    def error(self, what: str) -> ValueError:
        line = self._line + self.text.count("\n", 0, self.place)
        near = self.text[self.place : self.place + 60]
        return ValueError(f"{self.path}, line {line}: no JSON object of texts: {what}, at {near!r}")


def _entries(window: _Window) -> Iterator[tuple[str, object]]:
    window.take("{")
    if window.peek() == "}":
        window.take("}")
    else:
        separator = ","
        while separator == ",":
            key = window.value()
            if not isinstance(key, str):
                raise window.error("a key is no text")
            window.take(":")
            yield key, window.value()
            separator = window.take(",}")
    if window.peek():
        raise window.error("something follows the object")
