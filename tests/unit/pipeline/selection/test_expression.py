"""Expressions mean what they mean in Python; what is missing follows SQL; the rest is refused."""

from __future__ import annotations

import itertools
import re

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from pipeline.selection import values as v
from pipeline.selection.expression import Condition, compile_expression
from pipeline.selection.values import Kind, Truth, Values

KINDS: dict[str, Kind] = {
    "width": "number", "height": "number", "score": "number", "dhash": "number",
    "key": "text", "domain": "text", "sha256": "bytes", "nsfw": "condition",
}  # fmt: skip
DIGEST = bytes(range(32))


class Table:
    """Columns given as plain lists, None where a value is missing."""

    def __init__(self, **columns: list) -> None:
        types = {"dhash": pa.uint64(), "score": pa.float64(), "sha256": pa.binary(32)}
        self.columns = {n: v.from_arrow(pa.array(c, types.get(n))) for n, c in columns.items()}

    def read(self, name: str) -> Values:
        return self.columns[name]


def truth_of(text: str, table: Table) -> Truth:
    return v.all_of([c.test(table) for c in compile_expression(text, KINDS)])


def answers(text: str, **columns: list) -> list[bool | None]:
    """True, False, or None where it is neither, for each row."""
    truth = truth_of(text, Table(**columns))
    rows = len(next(iter(columns.values())))
    pairs = zip(
        *(np.broadcast_to(a, rows).tolist() for a in (truth.true, truth.false)), strict=True
    )
    assert not (truth.true & truth.false).any()
    return [True if true else False if false else None for true, false in pairs]


NUMBERS = st.one_of(
    st.sampled_from(["width", "height", "score"]),
    st.integers(-300, 300).map(str),
    st.floats(-4, 4, allow_nan=False).map(lambda x: f"{x:.3f}"),
)
TERMS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.sampled_from(["/", "//"]), st.integers(1, 9)).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda t: f"-{t}"),
    ),
    max_leaves=4,
)
SIGNS = st.sampled_from(["<", "<=", "==", "!=", ">=", ">"])
WORDS = st.text("ab1.", max_size=3)
TEXTS = st.sampled_from(["key", "domain"])
TESTS = st.one_of(
    st.tuples(TERMS, SIGNS, TERMS).map(" ".join),
    st.tuples(TERMS, SIGNS, TERMS, SIGNS, TERMS).map(" ".join),
    st.tuples(st.sampled_from(["width", "height"]), st.lists(st.integers(0, 6), min_size=1)).map(
        lambda t: f"{t[0]} in {t[1]}"
    ),
    st.tuples(TEXTS, SIGNS, WORDS).map(lambda t: f"{t[0]} {t[1]} {t[2]!r}"),
    st.tuples(WORDS, st.sampled_from(["in", "not in"]), TEXTS).map(
        lambda t: f"{t[0]!r} {t[1]} {t[2]}"
    ),
    st.tuples(TEXTS, st.sampled_from(["startswith", "endswith"]), WORDS).map(
        lambda t: f"{t[0]}.{t[1]}({t[2]!r})"
    ),
    st.tuples(TEXTS, st.lists(WORDS, min_size=1)).map(lambda t: f"{t[0]} not in {tuple(t[1])}"),
    st.just("nsfw"),
)
CONDITIONS = st.recursive(
    TESTS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda t: f"not ({t})"),
    ),
    max_leaves=6,
)
ROWS = st.lists(
    st.tuples(
        st.integers(0, 6), st.integers(-5, 4000), st.floats(-3, 3), WORDS, WORDS, st.booleans()
    ),
    min_size=1,
    max_size=8,
)


@given(text=CONDITIONS, rows=ROWS)
def test_an_expression_is_what_python_makes_of_it(text: str, rows: list[tuple]) -> None:
    names = ("width", "height", "score", "key", "domain", "nsfw")
    columns = {
        name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    expected = [bool(eval(text, {}, dict(zip(names, row, strict=True)))) for row in rows]
    assert answers(text, **columns) == expected


@pytest.mark.parametrize("word", ["and", "or"])
def test_missing_values_follow_three_valued_logic(word: str) -> None:
    three = (True, False, None)
    pairs = list(itertools.product(three, three))
    as_number = {True: 1, False: 0, None: None}
    found = answers(
        f"width == 1 {word} height == 1",
        width=[as_number[a] for a, _ in pairs],
        height=[as_number[b] for _, b in pairs],
    )
    deciding = word == "or"
    expected = [
        deciding if deciding in pair else None if None in pair else not deciding for pair in pairs
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score > 0", [True, None]),
        ("not score > 0", [False, None]),
        ("score != 5", [True, None]),
        ("score + 1 < 3", [True, None]),
        ("key == 'a'", [True, None]),
        ("key != 'a'", [False, None]),
        ("key in ('a', 'b')", [True, None]),
        ("key not in ('a', 'b')", [False, None]),
        ("startswith(key, 'a')", [True, None]),
        ("nsfw or missing(nsfw)", [True, True]),
        ("missing(score)", [False, True]),
        ("missing(key)", [False, True]),
        ("not missing(key) and key == 'a'", [True, False]),
    ],
)
def test_nothing_is_true_of_what_is_missing(text: str, expected: list[bool | None]) -> None:
    found = answers(text, score=[0.5, None], key=["a", None], nsfw=[True, None])
    assert found == expected


def test_nan_and_the_empty_text_are_missing() -> None:
    assert answers("missing(score)", score=[1.0, float("nan")]) == [False, True]
    assert answers("score != 1", score=[1.0, float("nan")]) == [False, None]
    assert answers("missing(key)", key=["a", ""]) == [False, True]


def test_division_by_zero_gives_nothing() -> None:
    assert answers("width / height > 1", width=[4, 4], height=[2, 0]) == [True, None]
    assert answers("width // height == 2", width=[5, 5], height=[2, 0]) == [True, None]


def test_hashes_of_64_bits_stay_exact() -> None:
    close = [2**64 - 1, 2**64 - 2, 2**53 + 1]
    assert answers(f"dhash == {2**64 - 1}", dhash=close) == [True, False, False]
    assert answers(f"dhash in ({2**64 - 2}, -1)", dhash=close) == [False, True, False]
    assert answers(f"dhash > {2**53}", dhash=close) == [True, True, True]
    assert answers("dhash > -1", dhash=close) == [True, True, True]


def test_sha256_is_compared_as_hexadecimal_digits() -> None:
    rows = [DIGEST, bytes(32)]
    assert answers(f"sha256 == '{DIGEST.hex()}'", sha256=rows) == [True, False]
    assert answers(f"sha256 != '{DIGEST.hex()}'", sha256=rows) == [False, True]
    assert answers(f"sha256 in ('{DIGEST.hex().upper()}',)", sha256=rows) == [True, False]


def test_tests_of_texts() -> None:
    rows = ["img1.flickr.com", "example.org"]
    for text in (
        r"matches(domain, r'^img\d\.')",
        "domain.endswith(('flickr.com', 'staticflickr.com'))",
        "contains(domain, 'flickr')",
        "domain.startswith('img')",
    ):
        assert answers(text, domain=rows) == [True, False], text


def test_conditions_are_told_apart_at_the_outermost_and() -> None:
    found = compile_expression("width > 3 and (height < 2 or key == 'and') and not nsfw", KINDS)
    assert [(c.text, c.columns) for c in found] == [
        ("width > 3", ("width",)),
        ("height < 2 or key == 'and'", ("height", "key")),
        ("not nsfw", ("nsfw",)),
    ]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("widht > 3", 1, "did you mean width"),
        ("width > 3 and ü == 1", 15, "there is no column 'ü'"),
        ("'ü' in key and widht > 3", 16, "did you mean width"),
        ("width = 3", 7, "'==' compares"),
        ("width >", 8, "invalid syntax"),
        ("width & 3 == 3", 9, "'and' or 'or'"),
        ("~nsfw", 1, "write 'not'"),
        ("width", 1, "must be a condition"),
        ("width and nsfw", 1, "must be a condition"),
        ("not width", 5, "must be a condition"),
        ("width > 'a'", 9, "a number with a text"),
        ("nsfw == True", 9, "join conditions"),
        ("key in ('a')", 9, "needs a list"),
        ("width in (1, 'a')", 14, "must hold constants"),
        ("width in (height, 1)", 11, "must hold constants"),
        ("width is None", 10, "missing(column)"),
        ("width ** 2 > 3", 10, "only + - * / //"),
        ("1 / 0 < width", 1, "division by zero"),
        (f"width < {2**64}", 9, "64 bits"),
        ("'a' == 'b'", 1, "two constants"),
        ("sha256 == 'abc'", 11, "64 hexadecimal digits"),
        ("sha256 < '" + "0" * 64 + "'", 10, "no order"),
        ("matches(key, '(')", 14, "missing )"),
        (r"matches(key, '\bcat\b')", 14, "r'...'"),
        ("key.upper() == 'A'", 1, "no function 'upper'"),
        ("len(key) > 3", 1, "no function 'len'"),
        ("startswith(key)", 1, "write startswith(column, 'text')"),
        ("startswith(width, '1')", 12, "must be a text"),
        ("startswith(key, key)", 17, "text in quotes"),
        ("missing(3)", 9, "looks at a column"),
        ("__import__('os').system('true')", 1, "no function 'system'"),
        ("[x for x in key]", 1, "not part of this language"),
        ("key[0] == 'a'", 1, "not part of this language"),
        ("(width, height)", 1, "list without 'in'"),
        ("b'a' == key", 1, "neither a number nor a text"),
    ],
)
def test_an_error_points_at_its_place(text: str, place: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        compile_expression(text, KINDS)
    shown = str(caught.value)
    assert f"(at character {place}):" in shown
    lines = shown.split("\n")
    assert lines[1] == f"  {text}"
    assert lines[2] == f"  {' ' * (place - 1)}^"


@pytest.mark.parametrize("text", ["", "   ", "((((" * 2000, "not " * 100_000 + "nsfw"])
def test_what_is_no_expression_at_all_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expression|nested|character"):
        compile_expression(text, KINDS)


def test_whole_numbers_that_leave_64_bits_are_an_error_and_not_a_wrong_answer() -> None:
    found: list[Condition] = compile_expression("width * height * 1000000 > 3", KINDS)
    with pytest.raises(ValueError, match="leave 64 bits"):
        found[0].test(Table(width=[2**31], height=[2**31]))
