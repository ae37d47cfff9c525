"""Columns while an expression is evaluated, and what can be done with them.

A value may be missing. A comparison with a missing value is neither true nor false, `and`, `or` and
`not` follow Kleene's three-valued logic, and a row is kept only where its condition is true: the
rules of SQL's WHERE.

Legend: C rows of a chunk. A literal's arrays have the shape () and broadcast.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Kind = Literal["number", "text", "bytes", "condition"]
"""What a column or a part of an expression is."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Numbers:
    """Numbers of some rows."""

    data: NDArray[Any]
    """[C] int64, uint64 or float64; 0 where missing."""
    known: NDArray[np.bool_]
    """[C] or (), False where the number is missing."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """A condition of some rows; neither true nor false where a value is missing."""

    true: NDArray[np.bool_]
    """[C] or ()."""
    false: NDArray[np.bool_]
    """[C] or ()."""


Values = Numbers | Truth | pa.Array | pa.Scalar
"""Numbers, a condition, or texts and bytes as Arrow has them."""

HASH_BYTES = 32
"""Length of the byte strings that can be compared: SHA-256."""
_COMPARE: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "==": (operator.eq, "equal"),
    "!=": (operator.ne, "not_equal"),
    "<": (operator.lt, "less"),
    "<=": (operator.le, "less_equal"),
    ">": (operator.gt, "greater"),
    ">=": (operator.ge, "greater_equal"),
}
_WHOLE = {"+": "add_checked", "-": "subtract_checked", "*": "multiply_checked"}
_TEXT_TESTS = {
    "startswith": "starts_with",
    "endswith": "ends_with",
    "contains": "match_substring",
    "matches": "match_substring_regex",
}


def numbers(data: NDArray[Any], known: NDArray[np.bool_] | None = None) -> Numbers:
    """Numbers of which NaN counts as missing, whatever `known` says."""
    known = np.ones(data.shape, dtype=bool) if known is None else known
    if data.dtype.kind == "f":
        known = known & ~np.isnan(data)
    return Numbers(data=np.where(known, data, data.dtype.type(0)), known=known)


def from_arrow(array: pa.Array) -> Values:
    """Values of an Arrow column; nulls are missing.

    Raises:
        TypeError: nothing can be computed with its type.
    """
    kind = kind_of(array.type)
    if isinstance(array.type, pa.DictionaryType):
        array = array.dictionary_decode()
    if kind == "text":
        return array.cast(pa.large_string())
    if kind == "bytes":
        return array
    known = array.is_valid().to_numpy(zero_copy_only=False)
    if kind == "condition":
        true = array.fill_null(False).to_numpy(zero_copy_only=False)
        return Truth(true=true, false=known & ~true)
    wide = pa.float64()
    if pa.types.is_integer(array.type):
        wide = pa.uint64() if pa.types.is_uint64(array.type) else pa.int64()
    filled = array.cast(wide).fill_null(0)
    return numbers(filled.to_numpy(zero_copy_only=False), known)


def kind_of(arrow_type: pa.DataType) -> Kind:
    """What an expression can do with a column of this type.

    Raises:
        TypeError: nothing.
    """
    if isinstance(arrow_type, pa.DictionaryType):
        return kind_of(arrow_type.value_type)
    if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type):
        return "text"
    if pa.types.is_fixed_size_binary(arrow_type) and arrow_type.byte_width == HASH_BYTES:
        return "bytes"
    if pa.types.is_boolean(arrow_type):
        return "condition"
    if any(
        check(arrow_type)
        for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    ):
        return "number"
    raise TypeError(f"a column of the type {arrow_type} cannot be used in an expression")


def compare(sign: str, left: Values, right: Values) -> Truth:
    """`left sign right` for two numbers, two texts, or two byte strings."""
    on_numbers, on_arrow = _COMPARE[sign]
    if isinstance(left, Numbers) and isinstance(right, Numbers):
        known = left.known & right.known
        result = on_numbers(left.data, right.data)
        return Truth(true=result & known, false=~result & known)
    return _from_nullable(pc.call_function(on_arrow, [left, right]))


def arithmetic(sign: str, left: Numbers, right: Numbers) -> Numbers:
    """`left sign right`; a division by zero gives a missing value.

    Raises:
        OverflowError: whole numbers leave 64 bits.
    """
    known = left.known & right.known
    whole = left.data.dtype.kind in "iu" and right.data.dtype.kind in "iu"
    if sign in _WHOLE and whole:
        return numbers(_whole(_WHOLE[sign], left.data, right.data), known)
    if sign in ("/", "//"):
        known = known & (right.data != 0)
        divisor = np.where(right.data != 0, right.data, right.data.dtype.type(1))
        divide = np.true_divide if sign == "/" else np.floor_divide
        with np.errstate(all="ignore"):
            return numbers(divide(left.data, divisor), known)
    combine = {"+": np.add, "-": np.subtract, "*": np.multiply}[sign]
    with np.errstate(all="ignore"):
        return numbers(combine(left.data, right.data, dtype=np.float64), known)


def _whole(function: str, left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.int64]:
    sides = []
    for side in (left, right):
        if side.dtype == np.uint64 and side.size and side.max() >= np.uint64(2**63):
            raise OverflowError("whole numbers leave 64 bits")
        sides.append(side.astype(np.int64))
    shape = np.broadcast_shapes(left.shape, right.shape)
    arrays = [pa.array(np.broadcast_to(side, shape).ravel()) for side in sides]
    try:
        result = pc.call_function(function, arrays)
    except pa.ArrowInvalid as error:
        raise OverflowError("whole numbers leave 64 bits") from error
    return result.to_numpy(zero_copy_only=False).reshape(shape)


def is_in(values: Values, literals: Sequence[Any]) -> Truth:
    """Whether each value is one of some literals of its kind."""
    if not isinstance(values, Numbers):
        assert not isinstance(values, Truth)  # a condition is never looked up in a list
        options = pc.SetLookupOptions(pa.array(list(literals), values.type))
        found = pc.call_function("is_in", [values], options)
        true = found.to_numpy(zero_copy_only=False)
        known = values.is_valid().to_numpy(zero_copy_only=False)
        return Truth(true=true & known, false=~true & known)
    dtype = values.data.dtype
    if dtype.kind in "iu":
        # As whole numbers: a 64-bit hash does not survive as a float.
        span = np.iinfo(dtype)
        literals = [int(v) for v in literals if v == int(v) and span.min <= v <= span.max]
    found = np.isin(values.data, np.array(literals, dtype=dtype))
    return Truth(true=found & values.known, false=~found & values.known)


def text_test(name: str, texts: pa.Array, patterns: Sequence[str]) -> Truth:
    """Whether each text starts with, ends with, contains or matches one of some patterns."""
    function = _TEXT_TESTS[name]
    options = pc.MatchSubstringOptions
    tests = [
        _from_nullable(pc.call_function(function, [texts], options(pattern)))
        for pattern in patterns
    ]
    return any_of(tests)


def missing(values: Values) -> Truth:
    """Whether a value is not there: null, NaN, or the empty text."""
    if isinstance(values, Numbers):
        return Truth(true=~values.known, false=values.known)
    if isinstance(values, Truth):
        known = values.true | values.false
        return Truth(true=~known, false=known)
    gone = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_large_string(values.type):
        lengths = pc.call_function("binary_length", [values])
        gone = gone | (lengths.fill_null(0).to_numpy(zero_copy_only=False) == 0)
    return Truth(true=gone, false=~gone)


def all_of(conditions: Sequence[Truth]) -> Truth:
    """`and`."""
    true, false = conditions[0].true, conditions[0].false
    for other in conditions[1:]:
        true, false = true & other.true, false | other.false
    return Truth(true=true, false=false)


def any_of(conditions: Sequence[Truth]) -> Truth:
    """`or`."""
    return negate(all_of([negate(condition) for condition in conditions]))


def negate(condition: Truth) -> Truth:
    """`not`."""
    return Truth(true=condition.false, false=condition.true)


def _from_nullable(array: pa.BooleanArray) -> Truth:
    known = array.is_valid().to_numpy(zero_copy_only=False)
    true = array.fill_null(False).to_numpy(zero_copy_only=False)
    return Truth(true=true, false=known & ~true)
