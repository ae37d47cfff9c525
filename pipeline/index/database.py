"""DuckDB as Tessera opens it: in bounded memory, and blind to Python's variables."""

from __future__ import annotations

from pathlib import Path

import duckdb


def open_database(
    spill: Path | None = None, *, memory: str = "256MB", threads: int = 1, ordered: bool = True
) -> duckdb.DuckDBPyConnection:
    """A database in memory, which knows the tables that it is given and no others.

    Args:
        spill: folder for what does not fit into the memory; DuckDB's choice if not given.
        memory: limit, as DuckDB writes it.
        threads: at work on a query; 0 takes all cores.
        ordered: whether the rows of an answer without ORDER BY keep the order of the input.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory,
        "preserve_insertion_order": ordered,
        "python_enable_replacements": False,
    }
    if spill is not None:
        config["temp_directory"] = str(spill)
    if threads:
        config["threads"] = threads
    database = duckdb.connect(config=config)
    database.execute("SET enable_progress_bar = false")  # it would go to stdout
    return database
