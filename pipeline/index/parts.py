"""An index in parts: several machines scan a share of its shards each, and one joins the scans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.pipeline.index.open import index_command
from tessera.pipeline.index.options import ScanOptions

_PART = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of the parts that an index is made in, perhaps on several machines."""

    number: int
    """Counts from 1."""
    count: int
    """Parts in all."""

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that `3/16` names.

        Raises:
            ValueError: it names none.
        """
        match = _PART.fullmatch(text)
        part = cls(number=int(match[1]), count=int(match[2])) if match else None
        if part is None or not 1 <= part.number <= part.count:
            raise ValueError(f"a part is NUMBER/COUNT, from 1/16 to 16/16, got {text!r}")
        return part

    def of(self, locations: Sequence[str]) -> list[str]:
        """Its share of all shards."""
        return list(locations[self.number - 1 :: self.count])

    def place(self, directory: Path) -> Path:
        """What its folder is called after."""
        return directory.with_name(f"{directory.name}.part-{self.number}-of-{self.count}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What scanning a part found."""

    num_shards: int
    """Shards of the part."""
    num_scanned_shards: int
    """Of them: read now; the others were unchanged since an earlier run."""
    num_samples: int
    """Usable samples."""
    num_rejected: int
    """Samples that cannot be used."""


def parts_made(directory: Path) -> list[Part]:
    """Parts that have a folder, in their order."""
    name = re.compile(rf"\.{re.escape(directory.name)}\.part-(\d+)-of-(\d+)\.partial")
    there = directory.parent.iterdir() if directory.parent.is_dir() else ()
    found = [match for path in there if (match := name.fullmatch(path.name))]
    parts = [Part(number=int(match[1]), count=int(match[2])) for match in found]
    return sorted(parts, key=lambda part: (part.count, part.number))


def missing_part(
    missing: list[str],
    sources: Mapping[str, str],
    directory: Path,
    options: ScanOptions,
    made: list[Part],
) -> str:
    """Which part a join waits for, and the command that makes it."""
    if not made:
        command = index_command(sources, directory, options, "--part", "1/16")
        return f"no part of {directory} was made yet: make the first of 16 with `{command}`"
    count = made[-1].count
    lines: list[str] = []
    for number in range(1, count + 1):
        part = Part(number=number, count=count)
        shards = part.of(list(sources))
        lacking = [each for each in shards if each in missing]
        if lacking:
            word = "is incomplete" if part in made else "is missing"
            words = ("--part", f"{number}/{count}")
            lines.append(
                f"part {number} of {count} {word} ({len(lacking)} of its {len(shards)} shards are "
                f"not scanned): make it with "
                f"`{index_command(sources, directory, options, *words)}`"
            )
    return "\n  ".join(lines)
