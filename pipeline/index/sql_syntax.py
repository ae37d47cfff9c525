"""What an expression of SQL consists of, and what is wrong with it, for a person."""

from __future__ import annotations

import json
from typing import Any

import duckdb


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
