"""How columns and expressions look in SQL: names, missing values, kinds, and what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

_HOST = r"^(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//(?:[^/@?#]*@)?(\[[^\]]*\]|[^/:?#]+)"
DERIVED = {
    "shortest": "least(width, height)",
    "longest": "greatest(width, height)",
    "pixels": "width::BIGINT * height",
    "aspect": "greatest(width, height) / least(width, height)",
}
"""Columns that are made of the index's own."""
DOMAIN = (
    f"nullif(regexp_replace(lower(regexp_extract(url, '{_HOST}', 1)), '^www\\.|\\.$', '', 'g'), '')"
)
"""Host of the column `url`, lower case, without `www.` and without a dot at its end."""
WHOLE_NUMBERS = re.compile(r"U?(?:TINY|SMALL|BIG|HUGE)?INT(?:EGER)?")
"""Types of whole numbers."""


def stored(field: pa.Field) -> str:
    """A column of the index as SQL sees it: NULL for what is missing, hashes in hexadecimal."""
    name = quoted(field.name)
    if pa.types.is_fixed_size_binary(field.type):
        return f"lower(hex({name}))"
    if pa.types.is_floating(field.type):
        return f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END"
    if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
        return f"nullif({name}, '')"
    return name


def without_empties(sql: str, kind: str) -> str:
    """A column of a joined table with NULL for what counts as missing."""
    if kind == "VARCHAR":
        return f"nullif({sql}, '')"
    if kind in ("FLOAT", "DOUBLE"):
        return f"CASE WHEN isnan({sql}) THEN NULL ELSE {sql} END"
    return f"lower(hex({sql}))" if kind == "BLOB" else sql


def id_text(path: Path, column: str, kind: str) -> str:
    """A column of ids of a joined table as text."""
    name = quoted(column)
    if kind == "BLOB":
        # Texts that were kept as bytes are texts; other bytes are hashes.
        return f"coalesce(try(nullif(decode({name}), '')), lower(hex({name})))"
    if kind == "VARCHAR" or WHOLE_NUMBERS.fullmatch(kind):
        return f"nullif(CAST({name} AS VARCHAR), '')"
    hint = ", as pandas writes ids where one is missing: write the column as text"
    raise ValueError(
        f"{path}: the column {column!r} holds {kind}, not ids"
        + (hint if kind in ("FLOAT", "DOUBLE") else "")
    )


def kind_of(sql_type: str) -> str:
    """Number, text, hash or condition; empty for what no condition can use."""
    if sql_type in ("FLOAT", "DOUBLE") or WHOLE_NUMBERS.fullmatch(sql_type):
        return "number"
    if sql_type.startswith("DECIMAL"):
        return "number"
    return {"VARCHAR": "text", "BOOLEAN": "condition", "BLOB": "hash", "DATE": "text"}.get(
        sql_type, "text" if sql_type.startswith("TIMESTAMP") else ""
    )


def identifier(name: str) -> str:
    """A name that needs no quotes in SQL."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in name)
    return plain if plain.isidentifier() else f"_{plain}"


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def columns_of(expression: str) -> list[str]:
    """The columns that an expression names, in the order in which they appear.

    Raises:
        ValueError: it is not one expression of SQL, or it holds a subquery; the message shows
            where.
    """
    if not expression.strip():
        raise ValueError("the expression is empty; write one such as 'shortest >= 200'")
    statement = f"SELECT 1 FROM samples WHERE ({expression}\n)"  # noqa: S608
    answer = duckdb.execute("SELECT json_serialize_sql(?::VARCHAR)", [statement]).fetchall()
    tree = json.loads(answer[0][0])
    if tree.get("error"):
        at = int(tree.get("position", 0)) - statement.index(expression)
        raise ValueError(_pointed(expression, tree.get("error_message", "it is no SQL"), at))
    statements = tree["statements"]
    where = statements[0]["node"].get("where_clause")
    if len(statements) != 1 or "SUBQUERY" in _values_of(where, "class"):
        raise ValueError(f"{expression!r}: only one expression without a subquery is taken")
    return list(dict.fromkeys(words[-1] for words in _values_of(where, "column_names")))


def first_line(error: Exception) -> str:
    """What a message of DuckDB says first."""
    return str(error).strip().split("\n", 1)[0]


def _values_of(tree: Any, key: str) -> list[Any]:
    """Everything that stands under a key in a tree of dicts and lists, in order."""
    if isinstance(tree, list):
        return [found for each in tree for found in _values_of(each, key)]
    if not isinstance(tree, dict):
        return []
    own = [tree[key]] if key in tree else []
    return own + [found for value in tree.values() for found in _values_of(value, key)]


def _pointed(expression: str, message: str, at: int) -> str:
    """A message with a mark under the character that it is about."""
    at = min(max(at, 0), len(expression))
    line = " ".join(expression.split("\n"))
    return f"{message} (at character {at + 1}):\n  {line}\n  {' ' * at}^"
