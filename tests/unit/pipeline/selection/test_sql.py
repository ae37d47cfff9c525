"""Conditions are SQL: what holds, what is left open by a missing value, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tessera.pipeline.index import Index, tables
from tessera.pipeline.index.tables import SampleTable, open_samples

ALL = np.arange(96)


@pytest.fixture
def samples(index: Index) -> Iterator[SampleTable]:
    with open_samples(index) as table:
        table.lock()
        yield table


def holding(samples: SampleTable, condition: str) -> list[int]:
    samples.check(condition)
    return np.flatnonzero(samples.truths([condition], ALL)[0] == 1).tolist()


def test_sql_and_its_functions(samples: SampleTable) -> None:
    for condition, expected in {
        "label IN (1, 2) AND key < '000000010'": [1, 2, 7, 8],
        "label == 1 and not key >= '000000010'": [1, 7],
        "shortest BETWEEN 64 AND 64 AND aspect = 1.25 AND pixels = 5120": list(range(96)),
        "matches(text, '(?i)NUMBER 5$')": [5],
        "text.ends_with('number 5') OR endswith(text, 'number 6')": [5, 6],
        "startswith(key, '00000009')": list(range(90, 96)),
        "contains(text, 'number 95')": [95],
        "domain = 'five.example'": list(range(5, 96, 5)),
        "missing(score)": [7],
        "score IS NULL OR url IS NULL": [0, 7],
        "sha256 = (CASE WHEN key = '000000050' THEN sha256 END)": [50],
        "num_captions = 2 AND max_caption_length > min_caption_length AND label = 0": list(
            range(0, 96, 6)
        ),
        "text LIKE '%number 1%' AND shard = '00000.tar' AND width * height / size > 0": [
            n for n in range(32) if "1" in str(n)[:1]
        ],
    }.items():
        assert holding(samples, condition) == expected, condition


def test_a_missing_value_leaves_a_condition_open(samples: SampleTable) -> None:
    either = samples.truths(["score > 0.5", "NOT score > 0.5", "score > 0.5 OR width = 80"], ALL)
    assert either[:, 7].tolist() == [2, 2, 1]
    assert either[:, 60].tolist() == [1, 0, 1]


@pytest.mark.parametrize("rows", [1, 7, 96, 10_000])
def test_chunks_decide_nothing(
    samples: SampleTable, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CHUNK_ROWS", rows)
    found = holding(samples, "score > 0.03 AND label = 1 AND contains(text, '7')")
    assert found == [37, 67, 73, 79]


def test_columns_are_named_in_their_order(samples: SampleTable) -> None:
    condition = "width > 3 AND 'height' < text AND samples.width < 100"
    assert samples.check(condition) == ["width", "text"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "is empty"),
        ("widht > 3", "width"),
        ("widht > 3", "known columns: aspect, dhash"),
        ("width", "is no condition: it gives INTEGER"),
        ("width > ", "at character"),
        ("200 <= shortest < 2000", "[Cc]hained"),
        ('key = "000000001"', "single quotes"),
        ("width > 3; SELECT 1", "at character"),
        ("width > (SELECT 3)", "without a subquery"),
        ("EXISTS (SELECT * FROM read_csv('/etc/passwd'))", "without a subquery"),
        ("text > 3 AND no_such(text)", "no_such"),
        ("count(*) > 3", "aggregate"),
    ],
)
def test_what_is_no_condition_on_a_row_is_refused(
    samples: SampleTable, condition: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        samples.check(condition)


def test_a_condition_that_fails_on_a_row_is_refused(samples: SampleTable) -> None:
    samples.check("text::INTEGER > 3")
    with pytest.raises(ValueError, match="cannot be computed"):
        samples.truths(["text::INTEGER > 3"], ALL)


@pytest.mark.parametrize("function", ["read_csv", "read_text", "read_parquet", "glob"])
def test_nothing_reads_files_once_the_tables_are_open(
    samples: SampleTable, function: str, tmp_path: Path
) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(Exception, match="disabled"):
        samples._database.execute(f"SELECT * FROM {function}('{tmp_path}/secret.csv')")
    with pytest.raises(Exception, match=r"locked|disabled"):
        samples._database.execute("SET enable_external_access = true")


def test_repeats(samples: SampleTable) -> None:
    assert samples.repeats("sha256", ALL).tolist() == list(range(1, 10))
    assert samples.repeats("dhash", ALL).tolist() == list(range(1, 96, 2))
    assert samples.repeats("sha256", np.array([3, 5, 20])).tolist() == [5]
    assert not len(samples.repeats("key", ALL))
    assert samples.occurring_more_than("sha256", 9, ALL).tolist() == list(range(10))
    assert not len(samples.occurring_more_than("sha256", 10, ALL))
