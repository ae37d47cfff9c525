"""What a table was made from and what is in it: table.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SUMMARY_FILE = "table.json"
_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSummary:
    """What a table was made from and what is in it; the content of table.json."""

    version: int = _VERSION
    pass_number: int = 0  # 0 for the first pass, 1 for the first retry, and so on
    source: str  # as it was given
    source_files: list[dict[str, Any]]  # path, num_bytes, mtime_ns and sha256 of each
    source_sha256: str  # hex, of the file, or over those of all files
    source_bytes: int
    options: dict[str, Any]  # what decides the result apart from the source
    format: str  # how the rows were read, in words
    format_notes: list[str]
    columns: list[str]
    extra_columns: dict[str, str]  # carried along: name in the parts to name in the source
    ignored_columns: list[str]
    num_source_rows: int  # data rows of the source, bad ones too
    num_rows: int  # rows of the table: what will be tried
    part_rows: list[int]
    repairs: dict[str, int]
    oddities: dict[str, int]
    dropped: dict[str, int]
    examples: dict[str, list[int]]  # row ids of the first of each finding
    num_hosts: int
    top_hosts: list[list[Any]]
    first_rows: list[list[str]]  # URL and caption of the first good rows of the source
    warnings: list[str]

    def describe(self) -> list[str]:
        """Lines to print: the format, the first rows, every count."""
        rows = [f"  {url}  |  {' '.join(text.split())[:80]}" for url, text in self.first_rows]
        lines = [
            f"table      {self.source} ({self.source_bytes / 1e6:.1f} MB)",
            f"format     {self.format}",
            *(f"           {note}" for note in self.format_notes),
            *rows,
            f"rows       {self.num_source_rows} read, {self.num_rows} to download, "
            f"{self.num_hosts} hosts, {len(self.part_rows)} parts",
        ]
        found = {"repaired": self.repairs, "kept": self.oddities, "dropped": self.dropped}
        for title, counts in found.items():
            for name, count in counts.items():
                seen = ", ".join(map(str, self.examples.get(name, [])))
                lines.append(f"{title:<10} {count} {name} (rows {seen})")
        carried = {"carried along": self.extra_columns, "left out": self.ignored_columns}
        lines += [
            f"columns    {how}: {', '.join(names)}" for how, names in carried.items() if names
        ]
        return lines + [f"warning    {text}" for text in self.warnings]


def load_summary(folder: Path) -> TableSummary | None:
    """The summary of a complete table, or None where there is none.

    Raises:
        ValueError: the folder holds something else, or parts are missing.
    """
    path = folder / SUMMARY_FILE
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds no {SUMMARY_FILE}: move it away, or use another one")
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        if values.get("version") != _VERSION:
            raise ValueError(
                f"{path} is of version {values.get('version')}, this program reads {_VERSION}: "
                "use another folder, or the program that made it"
            )
        summary = TableSummary(**{each.name: values[each.name] for each in fields(TableSummary)})
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): remove {folder} to make it anew"
        ) from error
    found = len(list(folder.glob("part-*.parquet")))
    if found != len(summary.part_rows):
        raise ValueError(
            f"{folder} holds {found} parts where its summary names {len(summary.part_rows)}: "
            "remove the folder to make it anew"
        )
    return summary
