"""What a table was made from and what is in it: table.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tools.download.table.source import SourceFile

SUMMARY_FILE = "table.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSummary:
    """What a table was made from and what is in it; the content of table.json."""

    version: int
    """Of this layout."""
    pass_number: int
    """0 for the first pass, 1 for the first retry, and so on."""
    source: str
    """As it was given."""
    source_files: tuple[SourceFile, ...]
    """The files read, in order."""
    source_sha256: str
    """SHA-256 (hex) of the file, or over those of all files."""
    source_bytes: int
    """Size of all files."""
    options: dict[str, Any]
    """What decides the result apart from the source."""
    format: str
    """How the rows were read, in words."""
    format_notes: tuple[str, ...]
    """What a person should know about that."""
    columns: tuple[str, ...]
    """Columns of the parts, in order."""
    extra_columns: dict[str, str]
    """Further columns carried along: name in the parts to name in the source."""
    ignored_columns: tuple[str, ...]
    """Columns of the source that were left out."""
    num_source_rows: int
    """Data rows of the source, bad ones too."""
    num_rows: int
    """Rows of the table: what will be tried."""
    num_parts: int
    """Parquet files."""
    part_rows: tuple[int, ...]
    """Rows of each."""
    repairs: dict[str, int]
    """Rows changed, by finding."""
    oddities: dict[str, int]
    """Rows kept byte for byte that deserve a look, by finding."""
    dropped: dict[str, int]
    """Rows left out, by finding."""
    examples: dict[str, list[int]]
    """Row ids of the first of each finding."""
    num_hosts: int
    """Distinct hosts of the URLs."""
    top_hosts: tuple[tuple[str, int], ...]
    """The hosts with most rows, and how many."""
    first_rows: tuple[tuple[str, str], ...]
    """URL and caption of the first good rows of the source."""
    warnings: tuple[str, ...]
    """What a person should look at before starting."""

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> TableSummary:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: it is of another version.
        """
        values = json.loads(text)
        if values.get("version") != VERSION:
            raise ValueError(
                f"the table is of version {values.get('version')}, this program writes {VERSION}: "
                "use another folder, or the program that made it"
            )
        values["source_files"] = tuple(SourceFile(**file) for file in values["source_files"])
        values["first_rows"] = tuple(tuple(row) for row in values["first_rows"])
        values["top_hosts"] = tuple((host, count) for host, count in values["top_hosts"])
        for name in ("format_notes", "columns", "ignored_columns", "part_rows", "warnings"):
            values[name] = tuple(values[name])
        return cls(**{item.name: values[item.name] for item in fields(cls)})

    def describe(self) -> list[str]:
        """Lines to print: the format, the first rows, every count."""
        rows = [f"  {url}  |  {_shortened(caption)}" for url, caption in self.first_rows]
        lines = [
            f"table      {self.source} ({self.source_bytes / 1e6:.1f} MB)",
            f"format     {self.format}",
            *(f"           {note}" for note in self.format_notes),
            *rows,
            f"rows       {self.num_source_rows} read, {self.num_rows} to download, "
            f"{self.num_hosts} hosts, {self.num_parts} parts",
        ]
        for title, counts in (
            ("repaired", self.repairs),
            ("kept", self.oddities),
            ("dropped", self.dropped),
        ):
            for name, count in counts.items():
                seen = ", ".join(map(str, self.examples.get(name, [])))
                lines.append(f"{title:<10} {count} {name} (rows {seen})")
        if self.extra_columns:
            lines.append(f"columns    carried along: {', '.join(self.extra_columns)}")
        if self.ignored_columns:
            lines.append(f"columns    left out: {', '.join(self.ignored_columns)}")
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
        summary = TableSummary.from_json(path.read_text("utf-8"))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove {folder} to make it anew") from error
    expected = {f"part-{number:05d}.parquet" for number in range(summary.num_parts)}
    found = {part.name for part in folder.glob("*.parquet")}
    if expected != found:
        raise ValueError(
            f"{folder} holds {len(found)} parts where its summary names {len(expected)}: "
            "remove the folder to make it anew"
        )
    return summary


def _shortened(text: str, width: int = 80) -> str:
    shown = text.replace("\n", " ").replace("\r", " ")
    return shown if len(shown) <= width else shown[: width - 1] + "…"
