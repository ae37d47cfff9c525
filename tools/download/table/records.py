"""Lines of text to the fields of rows, whatever their quotes do."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator

_URL = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//\S")
_MAX_RECORD_LINES = 200


def csv_records(
    lines: Iterator[str], separator: str
) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Records of a CSV; a bad quote costs its own line and no other.

    Yields:
        Fields, and the mark `bad_quote` where a line was taken as it stands.
    """
    kept: list[str] = []  # lines that a quote asked for and that turned out not to belong to it
    while True:
        line = kept.pop() if kept else next(lines, None)
        if line is None:
            return
        if '"' not in line:
            yield line.removesuffix("\r").split(separator), ()
            continue
        taken = [line]

        def more(taken: list[str] = taken) -> Iterator[str]:
            yield taken[0]
            while len(taken) < _MAX_RECORD_LINES:
                following = kept.pop() if kept else next(lines, None)
                if following is None:
                    return
                taken.append(following)
                yield f"\n{following}"

        try:
            row = next(csv.reader(more(), delimiter=separator, strict=True))
            # A line that begins with a URL is a row of its own, not the rest of a caption.
            good = not any(looks_like_url(each.lstrip('"')) for each in taken[1:])
        except (csv.Error, StopIteration):
            good, row = False, []
        if not good:
            kept.extend(reversed(taken[1:]))
            row = taken[0].removesuffix("\r").split(separator)
        yield row, () if good else ("bad_quote",)


def json_object(line: str) -> dict[str, object] | None:
    """The object that a line holds, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def looks_like_url(text: str) -> bool:
    """Whether it begins as a URL with a scheme, or with `//`."""
    return _URL.match(text) is not None
