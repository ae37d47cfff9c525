"""What a scan sees beside the samples: enough to say why nothing, or not all, was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

NUM_PEEKED = 8
"""Samples of a shard whose json is looked into although nothing of it is wanted."""
_MAX_KINDS = 1000
"""Sets of suffixes that are told apart; names full of dots have no end of them."""
_MAX_DEPTH = 3


@dataclass(kw_only=True, slots=True)
class Clues:
    """Counts over the samples of a shard, or of many."""

    layouts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Samples by the suffixes of their members."""
    json_texts: Counter[str] = field(default_factory=Counter)
    """Fields of json that hold a text, in the samples looked into."""
    json_lists: Counter[str] = field(default_factory=Counter)
    """Fields that hold several texts."""
    num_texts: int = 0
    """Caption files read."""
    num_texts_of_lines: int = 0
    """Of them: those with several lines."""
    num_apart: int = 0
    """Samples whose image and caption lie in different places of the tar."""
    num_repeated_elsewhere: int = 0
    """Samples whose key another shard has."""

    def see(self, suffixes: Iterable[str]) -> None:
        """Count a sample by its suffixes."""
        layout = tuple(suffixes)
        if layout in self.layouts or len(self.layouts) < _MAX_KINDS:
            self.layouts[layout] += 1

    def peek(self, document: object) -> None:
        """Count the fields of a sample's json that hold texts."""
        for path, num_texts in texts_in(document).items():
            (self.json_lists if num_texts > 1 else self.json_texts)[path] += 1

    @property
    def suffixes(self) -> Counter[str]:
        """How many samples have a member of each suffix."""
        found: Counter[str] = Counter()
        for layout, count in self.layouts.items():
            for suffix in layout:
                found[suffix] += count
        return found

    def add(self, other: Clues) -> None:
        """Take in what was seen elsewhere."""
        for name in ("layouts", "json_texts", "json_lists"):
            getattr(self, name).update(getattr(other, name))
        for name in ("num_texts", "num_texts_of_lines", "num_apart", "num_repeated_elsewhere"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """These counts as plain JSON values."""
        return {
            "layouts": [[list(layout), count] for layout, count in self.layouts.most_common(50)],
            "json_texts": dict(self.json_texts),
            "json_lists": dict(self.json_lists),
            "num_texts": self.num_texts,
            "num_texts_of_lines": self.num_texts_of_lines,
            "num_apart": self.num_apart,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_json`; what is missing is not known."""
        layouts = Counter({tuple(layout): count for layout, count in content.get("layouts", ())})
        return cls(
            layouts=layouts,
            json_texts=Counter(content.get("json_texts", {})),
            json_lists=Counter(content.get("json_lists", {})),
            **{n: content.get(n, 0) for n in ("num_texts", "num_texts_of_lines", "num_apart")},
        )


def texts_in(document: object, depth: int = _MAX_DEPTH) -> dict[str, int]:
    """Where a JSON value holds texts, and how many: `title`, `meta.caption`, `captions.raw`.

    The paths are those that `json:FIELD` takes; through a list, a path names a field of all its
    objects.
    """
    if isinstance(document, str):
        return {"": 1} if document.strip() else {}
    found: Counter[str] = Counter()
    if isinstance(document, list) and depth:
        for each in document:
            found.update(texts_in(each, depth - 1))
    if isinstance(document, dict) and depth:
        for name, value in document.items():
            for path, num_texts in texts_in(value, depth - 1).items():
                found[f"{name}.{path}" if path else name] += num_texts
    return dict(found)


def texts_at(document: object, path: str) -> object:
    """The value that `json:FIELD` names; None where there is none.

    A field whose own name has dots comes before one within another.
    """
    if isinstance(document, list):
        values = [texts_at(each, path) for each in document]
        flat: list[object] = []
        for value in values:
            flat += value if isinstance(value, list) else [value]
        return [value for value in flat if value is not None] or None
    if not isinstance(document, dict):
        return None
    if path in document:
        return document[path]
    name, _, rest = path.partition(".")
    return texts_at(document.get(name), rest) if rest else None
