"""The report counts each row once, by its last outcome, and names what a person should look at."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.tools.download.job import Job
from tessera.tools.download.report import PUBLISHED, SIDE_EDGES, throughput, write_report
from tessera.tools.download.table.summary import TableSummary
from tests.download_shards import FAILS, make_download, write_shard

TABLE = TableSummary(
    source="links.tsv", source_files=[], source_sha256="00", source_bytes=9, num_source_rows=41,
    options={}, format="TSV", format_notes=[], columns=[], extra_columns={}, ignored_columns=[],
    num_rows=38, part_rows=[25, 13], repairs={"crlf": 7}, oddities={}, warnings=[],
    dropped={"missing_url": 3}, examples={}, num_hosts=4, top_hosts=[], first_rows=[],
)  # fmt: skip


@pytest.fixture
def download(tmp_path: Path) -> Path:
    make_download(tmp_path)
    text = json.dumps(dataclasses.asdict(TABLE))
    (tmp_path / "table" / "table.json").write_text(text, encoding="utf-8")
    for number in range(5):
        write_shard(tmp_path, number)
    return tmp_path


def page_of(folder: Path) -> str:
    return (folder / "report" / "report.html").read_text(encoding="utf-8")


def counts(report: dict) -> dict[str, int]:
    return {each["cause"]: each["count"] for each in report["failures"]}


def add_retry(folder: Path, row_ids: list[int]) -> None:
    """A second pass over some rows, whose ids the stand-in takes from the table as they are."""
    retry = folder / "retry-01"
    (retry / "table").mkdir(parents=True)
    (retry / "shards").mkdir()
    rows = pq.read_table(sorted((folder / "table").glob("*.parquet")))
    kept = pa.Table.from_pylist(
        [row for row in rows.to_pylist() if row["row_id"] in row_ids], schema=rows.schema
    )
    pq.write_table(kept, retry / "table" / "part-00000.parquet")
    places = {"table": str(retry / "table"), "shards": str(retry / "shards")}
    job = dataclasses.replace(Job.load(folder), **places)
    (retry / "job.json").write_text(job.to_json(), encoding="utf-8")
    summary = dataclasses.asdict(TABLE) | {"part_rows": [len(kept)]}
    (retry / "table" / "table.json").write_text(json.dumps(summary), encoding="utf-8")
    write_shard(retry, 0)


def test_counts_of_a_complete_download(download: Path) -> None:
    report = write_report(download, expected_rows=41)
    assert json.loads((download / "report" / "report.json").read_text("utf-8")) == report
    assert report["complete"]
    assert (report["num_rows_tried"], report["num_stored"]) == (38, 26)
    assert report["share_stored"] == pytest.approx(26 / 38)
    assert report["train_num_samples"] == 26
    assert counts(report) == {"not_found": 4, "timeout": 4, "damaged_image": 4}
    by_cause = {each["cause"]: each for each in report["failures"]}
    assert [by_cause[cause]["retryable"] for cause in ("timeout", "not_found")] == [True, False]
    assert by_cause["timeout"]["share"] == pytest.approx(4 / 38)
    example = by_cause["not_found"]["examples"][0]
    assert (example["row_id"], example["url"]) == (3, "http://host3.example/3.jpg")
    assert by_cause["not_found"]["messages"] == {"not_found: HTTP 404": 4}


def test_hosts_sizes_and_placeholders(download: Path) -> None:
    report = write_report(download)
    stored = [i for i in range(38) if i % 10 not in FAILS]
    hosts = {each["name"]: each for each in report["hosts"]}
    for host in range(4):
        found = hosts[f"host{host}.example"]
        assert found["num_rows"] == len([i for i in range(38) if i % 4 == host])
        assert found["num_stored"] == len([i for i in stored if i % 4 == host])
    assert report["top_level_domains"] == [{"name": "example", "num_rows": 38, "num_stored": 26}]
    assert sum(report["sides"]["original"]) == 26
    for (low, high), count in zip(
        itertools.pairwise(SIDE_EDGES), report["sides"]["stored"], strict=True
    ):
        assert count == sum(low <= 100 + i < high for i in stored)
    groups = [[i for i in stored if i % 9 == digit] for digit in range(9)]  # by their sha256
    assert report["num_repeated"] == sum(len(group) for group in groups if len(group) > 1)
    found = {each["sha256"]: each for each in report["placeholders"]}
    for digit, group in enumerate(groups):
        if len(group) > 1:
            each = found[str(digit) * 64]
            assert (each["num_rows"], each["num_captions"]) == (len(group), len(group))
            assert each["url"].endswith(f"/{group[0]}.jpg")


def test_a_retried_row_counts_by_its_last_outcome(
    download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_retry(download, [5, 15])  # both time out again
    report = write_report(download)
    assert (report["num_rows_tried"], report["num_stored"]) == (38, 26)
    assert counts(report)["timeout"] == 4
    assert [each["num_rows"] for each in report["passes"]] == [38, 2]
    monkeypatch.delitem(FAILS, 5)
    write_shard(download / "retry-01", 0)  # both recover
    report = write_report(download)
    assert (report["num_rows_tried"], report["num_stored"]) == (38, 28)
    assert counts(report)["timeout"] == 2


def test_an_unfinished_download_says_so(download: Path) -> None:
    (download / "shards" / "00002_stats.json").unlink()
    report = write_report(download)
    assert (report["complete"], report["num_rows_tried"]) == (False, 33)
    assert "not complete" in page_of(download)


def test_only_cc12m_is_told_what_became_of_cc12m(
    download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "not_found: <script>alert(1)</script>"
    monkeypatch.setitem(FAILS, 3, ("failed_to_download", evil))
    write_shard(download, 0)
    write_report(download)
    page = page_of(download)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert not any(when in page for when, _ in PUBLISHED)
    assert "CC12M" not in page
    report = write_report(download, expected_rows=12_423_374)
    assert write_report(download)["num_rows_expected"] == report["num_rows_expected"]
    page = page_of(download)
    assert all(when in page and f"{share:.1%}" in page for when, share in PUBLISHED)
    assert "12,423,374 links" in page
    assert "10,968,539 pairs" in page


def test_throughput_adds_up_and_leaves_pauses_out() -> None:
    found = throughput([(100.0, 110.0, 50), (105.0, 115.0, 30), (1000.0, 1010.0, 40)])
    edges, rate = found["edges_s"], found["pictures_per_s"]
    assert found["seconds"] == pytest.approx(25)
    widths = [right - left for left, right in itertools.pairwise(edges)]
    assert sum(r * w for r, w in zip(rate, widths, strict=True)) == pytest.approx(120)
    assert throughput([]) == {"seconds": 0.0, "edges_s": [], "pictures_per_s": []}
