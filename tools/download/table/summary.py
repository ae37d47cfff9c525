"""What a table was made from and what is in it: table.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tessera.tools.download.table.source import SourceFile

SUMMARY_FILE = "table.json"
_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSummary:
    """What a table was made from and what is in it; the content of table.json."""

    version: int = _VERSION
    pass_number: int = 0  # 0 for the first pass, 1 for the first retry, and so on
    source: str  # As it was given
    source_files: tuple[SourceFile, ...]
    source_sha256: str  # SHA-256 (hex) of the file, or over those of all files
    source_bytes: int
    options: dict[str, Any]  # What decides the result apart from the source
    format: str  # How the rows were read, in words
    format_notes: tuple[str, ...]
    columns: tuple[str, ...]
    extra_columns: dict[str, str]
    """Further columns carried along: name in the parts to name in the source."""
    ignored_columns: tuple[str, ...]
    num_source_rows: int  # Data rows of the source, bad ones too
    num_rows: int  # Rows of the table: what will be tried
    part_rows: tuple[int, ...]
    repairs: dict[str, int]
    oddities: dict[str, int]
    dropped: dict[str, int]
    examples: dict[str, list[int]]  # Row ids of the first of each finding
    num_hosts: int
    top_hosts: tuple[tuple[str, int], ...]
    first_rows: tuple[tuple[str, str], ...]  # URL and caption of the first good rows of the source
    warnings: tuple[str, ...] = ()

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
        for title, names in (
            ("carried along", self.extra_columns),
            ("left out", self.ignored_columns),
        ):
            lines += [f"columns    {title}: {', '.join(names)}"] if names else []
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
        values["source_files"] = [SourceFile(**file) for file in values["source_files"]]
        for name in ("first_rows", "top_hosts"):
            values[name] = [tuple(row) for row in values[name]]
        values = {each.name: values[each.name] for each in fields(TableSummary)}
        made: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        summary = TableSummary(**made)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): remove {folder} to make it anew"
        ) from error
    expected = {f"part-{number:05d}.parquet" for number in range(len(summary.part_rows))}
    found = {part.name for part in folder.glob("*.parquet")}
    if expected != found:
        raise ValueError(
            f"{folder} holds {len(found)} parts where its summary names {len(expected)}: "
            "remove the folder to make it anew"
        )
    return summary
