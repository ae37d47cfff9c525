"""The language of `--where`: a small part of Python, parsed by `ast` and never executed.

Column names, numbers, strings; `+ - * / //`; comparisons, also chained; `in` and `not in` with a
list; `and`, `or`, `not`; the tests `startswith`, `endswith`, `contains` and `matches`, as functions
or as methods of a text; `missing(column)`.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.selection import values as v
from pipeline.selection.values import Kind, Numbers, Truth, Values

_SIGNS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//",
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
_FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
}
_TEXT_TESTS = ("startswith", "endswith", "contains", "matches")
_NOUN: dict[Kind, str] = {
    "number": "a number",
    "text": "a text",
    "bytes": "a hash",
    "condition": "a condition",
}
_LISTS = (ast.Tuple, ast.List, ast.Set)


class Rows(Protocol):
    """Some rows of a table."""

    def read(self, name: str) -> Values:
        """A column of these rows."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """One of the conditions that all have to hold."""

    text: str
    """As it was written."""
    columns: tuple[str, ...]
    """Those it reads, in the order in which they appear."""
    test: Callable[[Rows], Truth] = field(repr=False)
    """Where it holds; arrays may be of shape () if no column is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Node:
    """A part of an expression, ready to be evaluated."""

    kind: Kind
    run: Callable[[Rows], Any]
    literal: int | float | str | None = None


def compile_expression(text: str, kinds: Mapping[str, Kind]) -> list[Condition]:
    """Check an expression and prepare it.

    Args:
        text: the expression.
        kinds: names of all columns and what they hold.

    Returns:
        The conditions joined by its outermost `and`, at least one.

    Raises:
        ValueError: it is not of the language, names an unknown column, or combines what cannot be;
            the message shows where.
    """
    source = " ".join(text.split("\n")).strip()
    return _Compiler(source, kinds).conditions()


class _Compiler:
    """One expression on its way from text to functions."""

    def __init__(self, source: str, kinds: Mapping[str, Kind]) -> None:
        self._source = source
        self._kinds = kinds

    def conditions(self) -> list[Condition]:
        body = self._parse()
        parts = [body]
        if isinstance(body, ast.BoolOp) and isinstance(body.op, ast.And):
            parts = body.values
        return [self._condition(part) for part in parts]

    def _parse(self) -> ast.expr:
        if not self._source:
            raise ValueError("the expression is empty; write one such as 'shortest >= 200'")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of '\d' in a pattern, which is meant
                return ast.parse(self._source, mode="eval").body
        except SyntaxError as error:
            # Python reports an expression that ends too early at the start of the next line.
            is_here = error.lineno == 1 and bool(error.offset)
            place = (error.offset or 1) - 1 if is_here else len(self._source)
            hint = " ('==' compares)" if self._source[place : place + 1] == "=" else ""
            raise self._at(place, f"{error.msg}{hint}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"the expression cannot be read: {error}") from None

    def _condition(self, node: ast.expr) -> Condition:
        try:
            compiled = self._visit(node)
        except RecursionError:
            raise ValueError("the expression is nested too deeply") from None
        self._want(compiled, node, "condition", "each part of the expression")
        names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in self._kinds]
        text = ast.get_source_segment(self._source, node) or self._source
        return Condition(text=text, columns=tuple(dict.fromkeys(names)), test=compiled.run)

    def _visit(self, node: ast.expr) -> _Node:
        visitors: dict[type[ast.expr], Callable[[Any], _Node]] = {
            ast.Name: self._column,
            ast.Constant: self._literal,
            ast.BoolOp: self._bool,
            ast.UnaryOp: self._unary,
            ast.BinOp: self._binary,
            ast.Compare: self._compare,
            ast.Call: self._call,
        }
        if type(node) not in visitors:
            raise self._error(node, f"{_what(node)} is not part of this language")
        return visitors[type(node)](node)

    def _column(self, node: ast.Name) -> _Node:
        name = node.id
        if name not in self._kinds:
            near = difflib.get_close_matches(name, self._kinds, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(sorted(self._kinds))
            raise self._error(node, f"there is no column {name!r}{hint}", f"known: {known}")
        return _Node(kind=self._kinds[name], run=lambda rows: rows.read(name))

    def _literal(self, node: ast.Constant) -> _Node:
        value = node.value
        if isinstance(value, bool):
            truth = Truth(true=np.asarray(value), false=np.asarray(not value))
            return _Node(kind="condition", run=lambda _: truth)
        if isinstance(value, str):
            return _text_node(value)
        if isinstance(value, int | float):
            return self._number_node(value, node)
        raise self._error(node, f"{value!r} is neither a number nor a text")

    def _number_node(self, value: float, node: ast.expr) -> _Node:
        whole = isinstance(value, int)
        if (whole and not -(2**63) <= value < 2**64) or (not whole and not math.isfinite(value)):
            raise self._error(node, "the number does not fit into 64 bits")
        constant = v.numbers(np.asarray(value))
        return _Node(kind="number", run=lambda _: constant, literal=value)

    def _bool(self, node: ast.BoolOp) -> _Node:
        word, join = ("and", v.all_of) if isinstance(node.op, ast.And) else ("or", v.any_of)
        parts = [self._visit(part) for part in node.values]
        for part, place in zip(parts, node.values, strict=True):
            self._want(part, place, "condition", f"each side of {word!r}")
        return _Node(kind="condition", run=lambda rows: join([p.run(rows) for p in parts]))

    def _unary(self, node: ast.UnaryOp) -> _Node:
        inner = self._visit(node.operand)
        if isinstance(node.op, ast.Not):
            self._want(inner, node.operand, "condition", "what follows 'not'")
            return _Node(kind="condition", run=lambda rows: v.negate(inner.run(rows)))
        if isinstance(node.op, ast.Invert):
            raise self._error(node, "write 'not' instead of '~'")
        self._want(inner, node.operand, "number", "what follows a sign")
        if isinstance(node.op, ast.UAdd):
            return inner
        if isinstance(inner.literal, int | float):
            return self._number_node(-inner.literal, node)
        return self._combine("-", _Node(kind="number", run=lambda _: _ZERO), inner, node)

    def _binary(self, node: ast.BinOp) -> _Node:
        sign = _SIGNS.get(type(node.op))
        if isinstance(node.op, ast.BitAnd | ast.BitOr):
            raise self._error(node.right, "write 'and' or 'or' instead of '&' or '|'")
        if sign is None:
            raise self._error(node.right, "of the operators there are only + - * / //")
        left, right = self._visit(node.left), self._visit(node.right)
        self._want(left, node.left, "number", f"the left side of {sign!r}")
        self._want(right, node.right, "number", f"the right side of {sign!r}")
        if isinstance(left.literal, int | float) and isinstance(right.literal, int | float):
            try:
                return self._number_node(_FOLD[sign](left.literal, right.literal), node)
            except (ZeroDivisionError, OverflowError) as error:
                raise self._error(node, str(error)) from None
        return self._combine(sign, left, right, node)

    def _combine(self, sign: str, left: _Node, right: _Node, node: ast.expr) -> _Node:
        def run(rows: Rows) -> Numbers:
            try:
                return v.arithmetic(sign, left.run(rows), right.run(rows))
            except OverflowError as error:
                raise self._error(node, str(error)) from None

        return _Node(kind="number", run=run)

    def _compare(self, node: ast.Compare) -> _Node:
        sides = [node.left, *node.comparators]
        tests = [
            self._pair(left, sign, right)
            for left, sign, right in zip(sides[:-1], node.ops, sides[1:], strict=True)
        ]
        return _Node(kind="condition", run=lambda rows: v.all_of([t(rows) for t in tests]))

    def _pair(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> Callable[[Rows], Truth]:
        if isinstance(sign, ast.Is | ast.IsNot):
            raise self._error(right, "write missing(column) to find what is missing")
        if isinstance(sign, ast.In | ast.NotIn):
            test = self._membership(left, right)
            return test if isinstance(sign, ast.In) else lambda rows: v.negate(test(rows))
        one, other = self._visit(left), self._visit(right)
        if "bytes" in (one.kind, other.kind):
            one, other = self._as_hash(one, left), self._as_hash(other, right)
        word = _SIGNS[type(sign)]
        if one.kind != other.kind or one.kind == "condition":
            nouns = f"{_NOUN[one.kind]} with {_NOUN[other.kind]}"
            hint = ": join conditions with 'and', 'or', 'not'" if one.kind == "condition" else ""
            raise self._error(right, f"{word!r} cannot compare {nouns}{hint}")
        if one.kind == "bytes" and word not in ("==", "!="):
            raise self._error(right, "hashes have no order: only == and != compare them")
        if isinstance(one.literal, str) and isinstance(other.literal, str):
            raise self._error(left, "this compares two constants")
        return lambda rows: v.compare(word, one.run(rows), other.run(rows))

    def _membership(self, left: ast.expr, right: ast.expr) -> Callable[[Rows], Truth]:
        value = self._visit(left)
        if isinstance(right, _LISTS):
            items = [self._visit(item) for item in right.elts]
            if value.kind == "bytes":
                items = [self._as_hash(i, n) for i, n in zip(items, right.elts, strict=True)]
            for item, place in zip(items, right.elts, strict=True):
                if item.literal is None or item.kind != value.kind:
                    raise self._error(place, f"the list must hold constants, {value.kind}s alone")
            if isinstance(value.literal, str):
                raise self._error(left, "this compares two constants")
            literals = [item.literal for item in items]
            if value.kind == "bytes":
                literals = [bytes.fromhex(str(literal)) for literal in literals]
            return lambda rows: v.is_in(value.run(rows), literals)
        text = self._visit(right)
        if isinstance(value.literal, str) and text.kind == "text" and text.literal is None:
            pattern = value.literal
            return lambda rows: v.text_test("contains", text.run(rows), [pattern])
        raise self._error(right, "'in' needs a list, such as (1, 2) or ('a',)")

    def _as_hash(self, node: _Node, place: ast.expr) -> _Node:
        """A text of hexadecimal digits as the bytes it stands for."""
        if node.kind == "bytes":
            return node
        try:
            raw = bytes.fromhex(node.literal if isinstance(node.literal, str) else "")
        except ValueError:
            raw = b""
        if len(raw) != v.HASH_BYTES:
            digits = 2 * v.HASH_BYTES
            raise self._error(place, f"a hash is compared with {digits} hexadecimal digits in ''")
        scalar = pa.scalar(raw, pa.binary(len(raw)))
        return _Node(kind="bytes", run=lambda _: scalar, literal=raw.hex())

    def _call(self, node: ast.Call) -> _Node:
        """`test(text, pattern)` or `text.test(pattern)`, or `missing(column)`."""
        arguments = list(node.args)
        if isinstance(node.func, ast.Attribute):
            name, arguments = node.func.attr, [node.func.value, *arguments]
        else:
            name = node.func.id if isinstance(node.func, ast.Name) else "?"
        if name not in (*_TEXT_TESTS, "missing"):
            known = ", ".join((*_TEXT_TESTS, "missing"))
            raise self._error(node, f"there is no function {name!r}", f"known: {known}")
        wanted = 1 if name == "missing" else 2
        if len(arguments) != wanted or node.keywords:
            usage = "missing(column)" if wanted == 1 else f"{name}(column, 'text')"
            raise self._error(node, f"write {usage}")
        subject = self._visit(arguments[0])
        if subject.literal is not None:
            raise self._error(arguments[0], f"{name} looks at a column, not at a constant")
        if name == "missing":
            return _Node(kind="condition", run=lambda rows: v.missing(subject.run(rows)))
        self._want(subject, arguments[0], "text", f"the first part of {name}")
        patterns = self._patterns(name, arguments[1])
        return _Node(
            kind="condition", run=lambda rows: v.text_test(name, subject.run(rows), patterns)
        )

    def _patterns(self, name: str, node: ast.expr) -> list[str]:
        parts: Sequence[ast.expr] = node.elts if isinstance(node, _LISTS) else [node]
        patterns = []
        for part in parts:
            literal = part.value if isinstance(part, ast.Constant) else None
            if not isinstance(literal, str):
                raise self._error(part, f"{name} needs a text in quotes")
            patterns.append(literal)
            if name == "matches":
                self._check_pattern(literal, part)
        if not patterns:
            raise self._error(node, f"{name} needs at least one text")
        return patterns

    def _check_pattern(self, pattern: str, node: ast.expr) -> None:
        if "\b" in pattern:
            raise self._error(node, "'\\b' is a backspace here: write r'...' for a pattern")
        try:
            v.text_test("matches", pa.array([""], pa.large_string()), [pattern])
        except pa.ArrowInvalid as error:
            raise self._error(node, str(error)) from None

    def _want(self, node: _Node, place: ast.expr, kind: Kind, who: str) -> None:
        if node.kind != kind:
            raise self._error(place, f"{who} must be {_NOUN[kind]}; this is {_NOUN[node.kind]}")

    def _error(self, node: ast.expr, message: str, more: str = "") -> ValueError:
        line = self._source.encode()
        return self._at(len(line[: node.col_offset].decode(errors="ignore")), message, more)

    def _at(self, place: int, message: str, more: str = "") -> ValueError:
        """An error that points at a character."""
        lines = [f"{message} (at character {place + 1}):", f"  {self._source}", f"  {' ' * place}^"]
        return ValueError("\n".join([*lines, *([more] if more else [])]))


_ZERO = v.numbers(np.asarray(0))


def _text_node(value: str) -> _Node:
    scalar = pa.scalar(value, pa.large_string())
    return _Node(kind="text", run=lambda _: scalar, literal=value)


def _what(node: ast.expr) -> str:
    if isinstance(node, _LISTS):
        return "a list without 'in'"
    names = {"Attribute": "a dot", "Subscript": "[...]", "IfExp": "'if'", "Lambda": "'lambda'"}
    return names.get(type(node).__name__, type(node).__name__)
