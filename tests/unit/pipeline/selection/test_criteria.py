"""What is kept of an index, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.dataset import open_dataset
from tessera.pipeline.index.select import Chosen, Criteria, choose
from tessera.pipeline.index.selections import write_selection
from tessera.pipeline.index.tables import open_samples
from tests.unit.pipeline.selection.conftest import add_column


def kept(index: Index, name: str = "", **criteria: Any) -> list[int]:
    return chosen(index, **criteria).rows[name].tolist()


def chosen(index: Index, where: str | tuple[str, ...] = (), **criteria: Any) -> Chosen:
    criteria["where"] = (where,) if isinstance(where, str) else where
    return choose(open_dataset(index.directory), Criteria(**criteria))


def value(index: Index, name: str, row: int) -> object:
    with open_samples(index) as samples:
        return samples.values(name, np.array([row]))[0].as_py()


def test_every_column_says_what_it_should(index: Index) -> None:
    """Pictures are 80 by 64; row 5 is in the first of three shards."""
    texts = ["a purple picture with the number 5", "a purple picture with the number 5, seen again"]
    lengths = np.diff(index.captions().token_offsets)[10:12].tolist()
    expected = {
        "key": "000000005", "shard": "00000.tar", "size": index.size[5], "label": 5,
        "width": 80, "height": 64, "shortest": 64, "longest": 80, "pixels": 5120, "aspect": 1.25,
        "num_captions": 2, "text": texts[0],
        "min_caption_length": len(texts[0]), "max_caption_length": len(texts[1]),
        "min_num_tokens": min(lengths), "max_num_tokens": max(lengths),
        "score": 0.05, "dhash": 2 * 2**32, "domain": "five.example",
        "url": "https://WWW.Five.example:8080/5.jpg?size=large",
        "sha256": index.column("sha256")[5].as_py(),
    }  # fmt: skip
    with open_samples(index) as samples:
        assert set(samples.kinds) == set(expected)
    assert {name: value(index, name, 5) for name in expected} == expected


def test_each_condition_is_counted_and_shown(index: Index) -> None:
    found = chosen(index, where=("score > 0.03", "domain != 'five.example'", "label in (1, 2)"))
    expected = [n for n in range(96) if n > 3 and n != 7 and n % 5 and n % 6 in (1, 2)]
    assert found.rows[""].tolist() == expected
    score, domain, label = found.steps
    assert (score.num_failing, score.num_missing, score.num_dropped) == (5, 1, 5)
    assert (domain.num_failing, domain.num_missing) == (20, 1)
    assert domain.num_dropped == 19, "rows 0, 5 .. 95, of which row 0 was dropped before"
    assert sum(step.num_dropped for step in found.steps) == 96 - len(expected)
    assert score.examples == (
        "000000000, score 0", "000000001, score 0.01", "000000002, score 0.02"
    )  # fmt: skip
    assert label.condition == "label in (1, 2)"


def test_it_can_start_from_a_selection(index: Index) -> None:
    write_selection(index, "low", np.arange(10), {})
    dataset = open_dataset(f"{index.directory}@low")
    assert choose(dataset, Criteria(where=("label == 1",))).rows[""].tolist() == [1, 7]


def test_repeats_are_looked_for_among_what_is_left(index: Index) -> None:
    assert kept(index, unique=("sha256",)) == [0, *range(10, 96)]
    assert kept(index, where="score > 0.025", unique=("sha256",)) == [3, *range(10, 96)]
    assert kept(index, unique=("sha256", "dhash")) == [0, *range(10, 96, 2)]


def test_placeholders_are_counted_over_the_whole_index(index: Index) -> None:
    """Only two of the ten are left by the condition, and still they go."""
    found = chosen(index, where="score > 0.075", drop_repeated="sha256", more_than=9)
    assert found.rows[""].tolist() == list(range(10, 96))
    assert [step.num_dropped for step in found.steps] == [8, 2]


def test_look_alikes(index: Index) -> None:
    """dhash is the row's half in one 32-bit field: distance = differing bits of the halves."""
    rows = kept(index, unique=("dhash",), max_distance=2)
    halves = [row // 2 for row in rows]
    assert rows[0] == 0
    assert all((a ^ b).bit_count() > 2 for a in halves for b in halves if a != b)
    assert len(set(halves)) == len(halves)
    dropped = set(range(48)) - set(halves)
    assert all(any((a ^ b).bit_count() <= 2 for b in halves) for a in dropped)


def test_parts_are_disjoint_and_together_everything(index: Index) -> None:
    parts = chosen(index, split_into=("train=0.8", "heldout=0.2")).rows
    assert sorted([*parts["train"], *parts["heldout"]]) == list(range(96))
    assert 5 < len(parts["heldout"]) < 40
    again = chosen(index, where="label != 3", split_into=("train=0.8", "heldout=0.2")).rows
    assert set(again["heldout"]) <= set(parts["heldout"])
    assert set(again["train"]) <= set(parts["train"])


def test_a_split_by_content_keeps_copies_together(index: Index) -> None:
    parts = chosen(index, split_by="sha256", split_into=("a=0.5", "b=0.5")).rows
    copies = set(range(10))
    assert copies <= set(parts["a"].tolist()) or copies <= set(parts["b"].tolist())


def test_a_split_by_what_is_missing_is_refused(index: Index) -> None:
    criteria = {"split_by": "url", "split_into": ("a=0.5", "b=0.5")}
    with pytest.raises(ValueError, match=r"1 samples have no 'url'.*url IS NOT NULL"):
        chosen(index, **criteria)
    parts = chosen(index, where="url IS NOT NULL", **criteria).rows
    assert sum(map(len, parts.values())) == 95


def test_a_limit_draws_evenly_and_nests(index: Index) -> None:
    ten, twenty = kept(index, limit=10), kept(index, limit=20)
    assert (len(ten), len(twenty)) == (10, 20)
    assert set(ten) < set(twenty)
    assert ten == sorted(ten)
    assert ten != kept(index, limit=10, seed=1)
    assert kept(index, limit=1000) == list(range(96))
    parts = chosen(index, limit=5, split_into=("a=0.5", "b=0.5")).rows
    assert [len(rows) for rows in parts.values()] == [5, 5]


def test_the_limit_is_drawn_apart_from_the_split(index: Index) -> None:
    """Otherwise a small draw would lie in one part."""
    part = chosen(index, split_into=("a=0.5", "b=0.5")).rows["a"]
    drawn = kept(index, limit=40)
    assert 10 < len(set(drawn) & set(part.tolist())) < 30


def table(path: Path, **columns_: object) -> str:
    pq.write_table(pa.table(columns_), path, row_group_size=10)
    return str(path)


def test_a_joined_table(index: Index, tmp_path: Path) -> None:
    """Every third sample, backwards, one twice, and keys that the index lacks."""
    rows = [*range(93, -1, -3), 93, 1000]
    joined = table(
        tmp_path / "t.parquet",
        key=[f"{row:09d}" for row in rows],
        language=["en" if row % 2 else "de" for row in rows[:-2]] + ["xx", "en"],
        **{"clip score": [row / 10 for row in rows]},
        width=rows,
        nested=[[row] for row in rows],
    )
    found = chosen(index, where=("language == 'en' and clip_score > 3",), join=joined, on="key")
    assert found.rows[""].tolist() == list(range(33, 96, 6))
    assert found.joined is not None
    assert (found.joined.num_rows, found.joined.num_matched, found.joined.num_repeated) == (
        34,
        32,
        1,
    )
    assert found.steps[0].num_missing == 64
    assert kept(index, where="joined_width >= 90 and width == 80", join=joined, on="key") == [
        90,
        93,
    ]
    assert kept(index, where="missing(language)", join=joined, on="key") == [
        row for row in range(96) if row % 3
    ]
    with pytest.raises(ValueError, match='"nested" not found'):
        chosen(index, where="nested == 3", join=joined, on="key")


def test_samples_of_one_url_share_its_row_and_missing_ones_match_nothing(
    index: Index, tmp_path: Path
) -> None:
    joined = table(
        tmp_path / "t.parquet",
        url=pa.array(["", "https://img1.example.org/1.jpg?size=large", None]),
        good=[True, True, True],
        sha256=pa.array([index.column("sha256")[3].as_py()] * 3, pa.binary(32)),
    )
    assert kept(index, where="good", join=joined, on="url") == [1]
    assert kept(index, where="good", join=joined, on="sha256") == list(range(10))


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({"where": "widht > 3"}, '"widht" not found'),
        ({"where": "width > 1000"}, "nothing is kept[\\s\\S]*96 by width > 1000"),
        ({"unique": ("nothing",)}, "no column 'nothing'"),
        ({"unique": ("score",)}, "'score' cannot be used"),
        ({"unique": ("sha256",), "max_distance": 2}, "--unique dhash"),
        ({"unique": ("dhash",), "max_distance": 4}, "between 0 and 3"),
        ({"drop_repeated": "sha256", "more_than": 0}, "at least 1"),
        ({"join": "t.parquet"}, "needs both"),
        ({"split_into": ("a=0.5", "b=0.4")}, "add up to 1"),
        ({"split_into": ("a=0.5", "b=0.5"), "split_by": "nothing"}, "no column 'nothing'"),
        ({"limit": -1}, "not negative"),
        ({"seed": -1}, "seeds must lie"),
        ({"caption_source": "llava"}, "no caption source 'llava'"),
    ],
)
def test_wrong_criteria_are_refused(index: Index, criteria: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(index, **criteria)


def test_wrong_tables_are_refused(index: Index, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no table"):
        chosen(index, join=str(tmp_path / "t.parquet"), on="key")
    (tmp_path / "t.csv").write_text("key,score\n1,2\n")
    with pytest.raises(ValueError, match=r"no 'key' of .* is one of the index.*'1'"):
        chosen(index, join=str(tmp_path / "t.csv"), on="key")
    (tmp_path / "t.parquet").write_text("no table")
    with pytest.raises(ValueError, match="no parquet file"):
        chosen(index, join=str(tmp_path / "t.parquet"), on="key")
    joined = table(tmp_path / "t.parquet", key=["5"], x=[1])
    with pytest.raises(ValueError, match=r"no 'key' of .* is one of the index.*'5'"):
        chosen(index, where="x == 1", join=joined, on="key")
    with pytest.raises(ValueError, match="has no column 'url'; it has: key, x"):
        chosen(index, where="x == 1", join=joined, on="url")


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("http://www.Example.org/a.jpg", "example.org"),
        ("https://user:pw@img.example.org:8080/x?y=http://other.org", "img.example.org"),
        ("//cdn.example.org/a", "cdn.example.org"),
        ("http://example.org.", "example.org"),
        ("http://www.example.org?x", "example.org"),
        ("http://[2001:db8::1]:80/a", "[2001:db8::1]"),
        ("http://münchen.example/ä.jpg", "münchen.example"),
        ("http://wwwx.example.org", "wwwx.example.org"),
        ("example.org/a.jpg", None),
        ("http://", None),
        ("", None),
        (None, None),
    ],
)
def test_domains(index: Index, url: str | None, domain: str | None, tmp_path: Path) -> None:
    (index.directory / "columns" / "url.arrow").unlink()
    urls = pa.array([url or ""] * 96, pa.large_string())
    add_column(index.directory, "url", urls)
    assert value(open_index(index.directory), "domain", 3) == domain


@pytest.mark.parametrize("kind", ["one long page", "one long value"])
def test_a_joined_file_of_kilobytes_that_stands_for_gigabytes_is_refused(
    index: Index, tmp_path: Path, kind: str
) -> None:
    keys = [f"{row:09d}" for row in range(96)]
    texts = pa.array(["a" * 4_000_000])
    if kind == "one long value":
        texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(96, np.int32)), texts)
    else:
        texts = pa.array(["a" * 4_000_000] * 96)
    path = tmp_path / "t.parquet"
    whole = kind == "one long value"
    pq.write_table(
        pa.table({"key": keys, "language": texts}), path, compression="zstd", use_dictionary=whole
    )
    assert path.stat().st_size < 200_000
    with pytest.raises(ValueError, match=r"unpack to|a text of 4,000,000 bytes"):
        chosen(index, where="language == 'en'", join=str(path), on="key")
    assert kept(index, where="width = 80", join=str(path), on="key") == list(range(96))
