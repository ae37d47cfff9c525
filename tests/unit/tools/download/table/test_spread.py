"""Order and duplicates of the rows in the parts."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tools.download.table.findings import Tally
from tools.download.table.prepare import BASE_SCHEMA, table_batches
from tools.download.table.spread import Spread, host_of, num_buckets_for, spread_rows


def batch_of(urls: list[str], first: int = 0) -> pa.RecordBatch:
    ids = list(range(first, first + len(urls)))
    return pa.record_batch([ids, urls, [f"caption {n}" for n in ids]], schema=BASE_SCHEMA)


def spread(
    folder: Path,
    urls: list[str],
    *,
    num_buckets: int = 3,
    seed: int = 0,
    tally: Tally | None = None,
    size: int = 100,
) -> Spread:
    folder.mkdir()
    batches = [batch_of(urls[n : n + size], n) for n in range(0, len(urls), size)]
    return spread_rows(
        batches,
        folder,
        schema=BASE_SCHEMA,
        tally=tally or Tally(),
        num_buckets=num_buckets,
        seed=seed,
        rows_per_part=10_000,
    )


def ordered_urls(folder: Path) -> list[str]:
    return [url for batch in table_batches(folder) for url in batch.column("url").to_pylist()]


URLS = [f"https://{'big' if n % 2 else f'h{n % 40}'}.example/{n}.jpg" for n in range(2000)]


def test_order_depends_on_rows_and_seed_only(tmp_path: Path) -> None:
    spread(tmp_path / "a", URLS)
    spread(tmp_path / "b", URLS, size=7)
    spread(tmp_path / "c", URLS, seed=1)
    a, b, c = (ordered_urls(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c
    assert sorted(a) == sorted(c) == sorted(URLS)
    assert not list((tmp_path / "a").glob("bucket*"))


def test_neighbours_are_of_different_hosts(tmp_path: Path) -> None:
    blocks = [f"https://h{n // 200}.example/{n}.jpg" for n in range(2000)]  # host after host
    spread(tmp_path / "a", blocks, num_buckets=1)
    hosts = host_of(pa.array(ordered_urls(tmp_path / "a"))).to_pylist()
    for start in range(0, 2000, 100):
        counts = Counter(hosts[start : start + 100])
        assert set(counts) == {f"h{n}.example" for n in range(10)}
        assert max(counts.values()) <= 11
    same = sum(a == b for a, b in pairwise(hosts))
    assert same <= 10  # a plain shuffle leaves about 200


def test_large_host_is_spread_over_all_of_the_table(tmp_path: Path) -> None:
    spread(tmp_path / "a", URLS)
    big = np.array(["big" in url for url in ordered_urls(tmp_path / "a")])
    share = big.reshape(20, 100).mean(axis=1)
    assert abs(share - 0.5).max() < 0.15


def test_rows_of_a_host_are_shuffled(tmp_path: Path) -> None:
    spread(tmp_path / "a", [f"https://one.example/{n}" for n in range(1000)], num_buckets=1)
    numbers = [int(url.rsplit("/", 1)[1]) for url in ordered_urls(tmp_path / "a")]
    assert abs(np.corrcoef(numbers, np.arange(1000))[0, 1]) < 0.15


@pytest.mark.parametrize("num_buckets", [1, 4])
def test_first_of_equal_urls_stays(tmp_path: Path, num_buckets: int) -> None:
    urls = [f"https://h.example/{n % 300}" for n in range(1000)]
    tally = Tally()
    result = spread(tmp_path / "a", urls, num_buckets=num_buckets, tally=tally)
    assert result.num_rows == 300
    ids = [i for batch in table_batches(tmp_path / "a") for i in batch.column("row_id").to_pylist()]
    assert sorted(ids) == list(range(300))
    assert tally.dropped == {"duplicate_url_other_caption": 700}


def test_hosts_are_counted_over_buckets(tmp_path: Path) -> None:
    result = spread(tmp_path / "a", URLS, num_buckets=4)
    expected = Counter(url.split("/")[2] for url in URLS)
    assert result.num_hosts == len(expected)
    assert all(expected[host] == count for host, count in result.top_hosts)
    assert result.top_hosts[0] == ("big.example", 1000)


def test_empty_table(tmp_path: Path) -> None:
    result = spread(tmp_path / "a", [])
    assert (result.num_rows, result.part_rows, result.num_hosts) == (0, (), 0)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://A.Example/x", "a.example"),
        ("http://user:word@h.example:8080/x", "h.example"),
        ("//h.example?q", "h.example"),
        ("http://[::1]:80/x", "[::1]"),
        ("no/scheme.jpg", ""),
        ("https://h.example#x@y", "h.example"),
    ],
)
def test_host(url: str, host: str) -> None:
    assert host_of(pa.array([url])).to_pylist() == [host]


def test_buckets_grow_with_the_table() -> None:
    assert num_buckets_for(0) == num_buckets_for(1000) == 1
    assert num_buckets_for(2_707_204_412) > 20
    assert num_buckets_for(1 << 50) == 512
