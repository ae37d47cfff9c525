"""Tables in JSON: an object a line, a list of objects, COCO's captions, a map from key to texts.

A list or a map is read piece by piece, whatever its size: VeCap-300M is ten maps of about 30 M
entries each. COCO's file is read whole, since its texts come after all of its images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tessera.pipeline.index.foreign_tables import BadRow, Problem, Row, check_columns

_CHUNK_CHARACTERS = 1 << 20
_MAX_ENTRY_CHARACTERS = 1 << 24
_MAX_COCO_BYTES = 2 * 1024**3
_COCO = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:info|images|annotations|licenses)"\s*:\s*[\[{]')
_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()
MAP_COLUMNS = ["key", "caption"]
"""Columns of a map."""
COCO_COLUMNS = ["image", "caption"]
"""Columns of COCO's captions, a row for each caption."""


@dataclass(frozen=True, kw_only=True)
class JsonLinesTable:
    """Files with one JSON object a line."""

    files: tuple[Path, ...]
    """Read one after the other."""

    @property
    def notes(self) -> list[str]:
        """See `Table`."""
        return []

    @property
    def names(self) -> list[str]:
        """See `Table`."""
        return self._names

    @cached_property
    def _names(self) -> list[str]:
        return _first_names(self._objects())

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """See `Table`."""
        return _rows_of(self.files, self._objects(), columns)

    def _objects(self) -> Iterator[tuple[str, object]]:
        for path in self.files:
            prefix = f"{path.name}, " if len(self.files) > 1 else ""
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield f"{prefix}line {number}", _parsed(line, first=number == 1)


@dataclass(frozen=True, kw_only=True)
class JsonTable:
    """Files that are one JSON document each, all of the same kind."""

    files: tuple[Path, ...]
    """Read one after the other."""

    @property
    def notes(self) -> list[str]:
        """See `Table`."""
        if self._is_coco:
            return ["COCO's captions: one row a caption"]
        return ["a map from key to texts"] if self.is_map else []

    @cached_property
    def is_map(self) -> bool:
        """Whether it maps keys to texts, rather than listing rows."""
        return not self._is_coco and _Window.of(self.files[0]).peek() == "{"

    @property
    def names(self) -> list[str]:
        """See `Table`. Maps have `key` and `caption`, COCO's files `image` and `caption`."""
        return self._names

    @cached_property
    def _names(self) -> list[str]:
        if self._is_coco:
            return COCO_COLUMNS
        return MAP_COLUMNS if self.is_map else _first_names(self._objects())

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """See `Table`. A key that comes twice in a map is two rows."""
        return _rows_of(self.files, self._objects(), columns)

    @cached_property
    def _is_coco(self) -> bool:
        """Whether the first file begins as COCO's do, with a part that only they have."""
        with self.files[0].open("rb") as file:
            return bool(_COCO.match(file.read(_CHUNK_CHARACTERS)))

    def _objects(self) -> Iterator[tuple[str, object]]:
        for path in self.files:
            prefix = f"{path.name}, " if len(self.files) > 1 else ""
            if self._is_coco:
                for number, found in enumerate(_coco_rows(path), 1):
                    yield f"{prefix}annotation {number}", found
            elif self.is_map:
                for number, (key, value) in enumerate(_Window.of(path).entries(), 1):
                    yield f"{prefix}entry {number}", {"key": key, "caption": value}
            else:
                for number, value in enumerate(_Window.of(path).items(), 1):
                    yield f"{prefix}entry {number}", value


def _first_names(objects: Iterator[tuple[str, object]]) -> list[str]:
    return next((list(found) for _, found in objects if isinstance(found, dict)), [])


def _rows_of(
    files: tuple[Path, ...], objects: Iterator[tuple[str, object]], columns: Sequence[str]
) -> Iterator[Row | BadRow]:
    """Rows of objects; a column that none of them has is an error at the end of the files."""
    seen: dict[str, None] = {}
    for number, (where, found) in enumerate(objects):
        if not isinstance(found, dict):
            detail = str(found) if isinstance(found, _NoJson) else "it is no JSON object"
            yield BadRow(where, Problem.UNREADABLE, detail)
            continue
        seen |= dict.fromkeys(found)
        values: list[object] = [found.get(column) for column in columns]
        if _has_surrogate(values):
            detail = "it holds half of a surrogate pair, which UTF-8 cannot store"
            yield BadRow(where, Problem.ENCODING, detail)
        else:
            yield Row(where, values, number)
    if seen:
        check_columns(list(seen), columns, ", ".join(map(str, files)))


class _NoJson(str):
    """What is wrong with a piece that is no JSON."""


def _parsed(line: bytes, *, first: bool) -> object:
    try:
        return json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        return _NoJson(f"it is not UTF-8 ({error.reason} at byte {error.start})")
    except (ValueError, RecursionError) as error:
        return _NoJson(f"it is not JSON ({error})")


def _has_surrogate(value: object) -> bool:
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, list):
        return any(map(_has_surrogate, value))
    return False


def _coco_rows(path: Path) -> Iterator[object]:
    if path.stat().st_size > _MAX_COCO_BYTES:
        raise ValueError(f"{path} has more than {_MAX_COCO_BYTES:,} bytes: split it")
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
        names = {each["id"]: each["file_name"] for each in document["images"]}
        annotations = document["annotations"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of COCO's captions ({error!r})") from None
    for each in annotations:
        if not isinstance(each, dict) or each.get("image_id") not in names:
            yield _NoJson("its image_id is none of the images")
        else:
            yield {**each, "image": names[each["image_id"]]}


class _Window:
    """The part of a file that is being parsed."""

    def __init__(self, path: Path, chunks: Iterator[str]) -> None:
        self.path = path
        self.text = ""
        self.place = 0
        self._chunks = chunks
        self._line = 1

    @classmethod
    def of(cls, path: Path) -> _Window:
        """A window at the start of a file."""
        return cls(path, _chunks(path))

    def items(self) -> Iterator[object]:
        """The items of a list, in order.

        Raises:
            ValueError: it is no list, cut short, or not UTF-8; the message says where.
        """
        for _ in self._places("[", "]"):
            yield self._value()

    def entries(self) -> Iterator[tuple[str, object]]:
        """The entries of an object, in order, repeated keys included.

        Memory is bounded by the longest entry, which may have 16 Mi characters.

        Raises:
            ValueError: it is no object, cut short, or not UTF-8; the message says where.
        """
        for _ in self._places("{", "}"):
            key = self._value()
            if not isinstance(key, str):
                raise self._error("a key is no text")
            self._take(":")
            yield key, self._value()

    def _places(self, start: str, end: str) -> Iterator[None]:
        """Stop where each item begins; whoever asks for the next place has read the item."""
        self._take(start)
        if self.peek() == end:
            self._take(end)
        else:
            separator = ","
            while separator == ",":
                yield
                separator = self._take(f",{end}")
        self._check_end()

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in _SPACE:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        chunk = next(self._chunks, "")
        if chunk:
            self._line += self.text.count("\n", 0, self.place)
            self.text, self.place = self.text[self.place :] + chunk, 0
        return bool(chunk)

    def _take(self, wanted: str) -> str:
        """Pass one character of those wanted."""
        found = self.peek()
        if not found or found not in wanted:
            names = " or ".join(repr(each) for each in wanted)
            raise self._error(f"expected {names}, found {found!r}" if found else "it ends early")
        self.place += 1
        return found

    def _value(self) -> object:
        """Decode the value that starts here."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.place)
            except (json.JSONDecodeError, RecursionError) as error:
                too_long = len(self.text) - self.place > _MAX_ENTRY_CHARACTERS
                if too_long or isinstance(error, RecursionError) or not self._more():
                    raise self._error(getattr(error, "msg", "it is nested too deeply")) from None
                continue
            # A number at the end of the window may continue after it.
            if end < len(self.text) or not self._more():
                self.place = end
                return value

    def _check_end(self) -> None:
        if self.peek():
            raise self._error("something follows the document")

    def _error(self, what: str) -> ValueError:
        line = self._line + self.text.count("\n", 0, self.place)
        near = self.text[self.place : self.place + 60]
        return ValueError(f"{self.path}, line {line}: no JSON table: {what}, at {near!r}")


def _chunks(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        line = 1
        while True:
            try:
                chunk = file.read(_CHUNK_CHARACTERS)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, after line {line}: not UTF-8 ({error.reason}); convert the file, "
                    "for instance with iconv"
                ) from None
            if not chunk:
                return
            line += chunk.count("\n")
            yield chunk
