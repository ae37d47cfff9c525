"""A real run of img2dataset with Tessera's worker, against the hostile server."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.hostile_server import KINDS, PICTURES, HostileServer, jpeg_of, size_of
from tools.download.causes import Cause, classify
from tools.download.img2dataset_job import Job, num_shards, run_job

ROOT = Path(__file__).resolve().parents[4]
FIRST_ROW = 5_000
SLOW = [name for name, kind in KINDS.items() if kind.is_slow]
CAPTIONS = ("plain", "ümläut 日本 \U0001f600", "tab\there", ' "quoted" ', "", "a\nb", "&amp; <b>")
RUNNER = """\
import sys

sys.modules["torch"] = None  # webdataset would import it in every process

from tools.download.img2dataset_job import Job, run_job

place = __import__("wandb").__file__ if __name__ == "__mp_main__" else "not looked at"
sys.stdout.write(f"wandb is {place}\\n")  # at once: other processes write there too

if __name__ == "__main__":
    run_job(Job.from_json(sys.stdin.read()))
"""


def rows(server: HostileServer) -> list[dict[str, object]]:
    """One row of every kind that is not slow, and one of the slow ones."""
    paths = [f"{kind}/{100 + n}.jpg" for n, kind in enumerate(KINDS) if kind not in SLOW[1:]]
    urls = [server.url(path) for path in paths] + ["file:///etc/hostname", ""]
    return [
        {
            "row_id": FIRST_ROW + n,
            "url": url,
            "caption": CAPTIONS[n % len(CAPTIONS)],
            "score": n / 2,
        }
        for n, url in enumerate(urls)
    ]


def start_job(job: Job, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job in a process of its own, as the supervisor does."""
    script = folder / "run_the_job.py"
    script.write_text(RUNNER, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script)],
        input=job.to_json(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )


class Run:
    """What one job left behind."""

    def __init__(self, folder: Path, server: HostileServer) -> None:
        self.rows = rows(server)
        table = folder / "table"
        table.mkdir()
        pq.write_table(pa.Table.from_pylist(self.rows), table / "part-00000.parquet")
        self.job = Job(
            table=str(table),
            shards=str(folder / "shards"),
            samples_per_shard=40,
            processes=1,
            threads=16,
            timeout_s=1,
            deadline_s=2,
            allow_addresses=("127.0.0.1/32",),
            extra_columns=("score",),
        )
        self.process = start_job(self.job, folder, HTTPS_PROXY="http://127.0.0.1:9")
        self.shards = folder / "shards"
        names = sorted(self.shards.glob("*.parquet"))
        self.results = pa.concat_tables([pq.read_table(name) for name in names]).to_pylist()
        self.members: dict[str, bytes] = {}
        for name in sorted(self.shards.glob("*.tar")):
            with tarfile.open(name) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None
                    assert member.name not in self.members, "twice in the shards"
                    self.members[member.name] = content.read()


@pytest.fixture(scope="module")
def run(hostile_server: HostileServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"), hostile_server)


def expected_cause(run: Run, row_id: int) -> Cause | None:
    url = str(run.rows[row_id - FIRST_ROW]["url"])
    if not url.startswith("http"):
        return Cause.ADDRESS_REFUSED if url else Cause.BAD_URL
    return KINDS[url.split("/", 3)[3].partition("/")[0]].cause


def test_the_job_succeeds_and_says_what_it_does(run: Run) -> None:
    assert run.process.returncode == 0, run.process.stderr[-3000:]
    assert "addresses in 127.0.0.1/32 are fetched from" in run.process.stdout
    assert "HTTPS_PROXY is not used" in run.process.stdout
    assert "Traceback" not in run.process.stderr


def test_spawned_processes_get_the_stand_in_for_wandb(run: Run) -> None:
    lines = {line for line in run.process.stdout.splitlines() if line.startswith("wandb is /")}
    assert lines == {f"wandb is {ROOT / 'tools/download/without_wandb/wandb.py'}"}


def test_every_row_has_its_outcome_once(run: Run) -> None:
    outcomes = {row["row_id"]: classify(row["status"], row["error_message"]) for row in run.results}
    assert len(run.results) == len(outcomes) == len(run.rows)
    assert outcomes == {row_id: expected_cause(run, row_id) for row_id in outcomes}


def test_good_pictures_are_stored_with_their_caption(run: Run) -> None:
    good = {f"{row['row_id']:09d}": row for row in run.rows
            if expected_cause(run, int(str(row["row_id"]))) is None}  # fmt: skip
    suffixes = ("jpg", "json", "txt")
    assert set(run.members) == {f"{key}.{suffix}" for key in good for suffix in suffixes}
    for key, row in good.items():
        assert run.members[f"{key}.txt"] == str(row["caption"]).encode()
        fields = json.loads(run.members[f"{key}.json"])
        assert {name: fields[name] for name in row} == row
        assert fields["key"] == key
        number = int(str(row["url"]).rpartition("/")[2].partition(".")[0])
        picture = Image.open(BytesIO(run.members[f"{key}.jpg"]))
        assert (fields["original_width"], fields["original_height"]) == size_of(number)
        assert picture.size == (fields["width"], fields["height"])
        assert min(picture.size) == min(256, *size_of(number))


def test_the_hash_is_that_of_the_downloaded_bytes(run: Run) -> None:
    hashes = {row["url"]: row["sha256"] for row in run.results if row["status"] == "success"}
    checked = 0
    for url, found in hashes.items():
        kind, name = url.split("/")[3:5]
        if kind in PICTURES:
            data = PICTURES[kind](int(name.partition(".")[0]))
            assert found == hashlib.sha256(data).hexdigest(), kind
            checked += 1
    assert checked == len(PICTURES)


def test_the_counts_agree_and_the_messages_are_few(run: Run) -> None:
    stats = [json.loads(path.read_text()) for path in sorted(run.shards.glob("*_stats.json"))]
    assert len(stats) == num_shards(run.job) == 2
    assert sum(part["count"] for part in stats) == len(run.rows)
    stored = sum(name.endswith(".jpg") for name in run.members)
    assert sum(part["successes"] for part in stats) == stored
    messages = {text for part in stats for text in part["status_dict"]}
    assert not [text for text in messages if "127.0.0.1" in text or "http:" in text]
    assert len(messages) < 45


def test_a_second_start_changes_nothing(run: Run, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.shards.iterdir()}
    process = start_job(run.job, tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert {path.name: path.stat().st_mtime_ns for path in run.shards.iterdir()} == before


def test_a_shard_that_cannot_be_written_does_not_count(
    hostile_server: HostileServer, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    table.mkdir()
    row = {"row_id": 1, "url": hostile_server.url("good/150.jpg"), "caption": "a"}
    pq.write_table(pa.Table.from_pylist([row]), table / "part-00000.parquet")
    shards = tmp_path / "shards"
    (shards / "00000.tar").mkdir(parents=True)
    process = start_job(Job(table=str(table), shards=str(shards), processes=1), tmp_path)
    assert process.returncode == 1
    assert "1 of 1 shards were not finished" in process.stderr
    assert not list(shards.glob("*_stats.json"))


class TestInThisProcess:
    """The parts of the worker that need no img2dataset run."""

    @pytest.fixture
    def worker(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
        return importlib.import_module("tools.download.worker")

    @pytest.fixture
    def downloader(self, worker: Any, tmp_path: Path) -> Any:
        upright = importlib.import_module("tools.download.upright")
        fetch = importlib.import_module("tools.download.fetch")
        return worker.TesseraDownloader(
            limits=fetch.FetchLimits(
                timeout_s=1,
                deadline_s=2,
                max_bytes=10**7,
                retries=0,
                user_agent="a",
                respect_opt_out=True,
                allow_addresses=("127.0.0.1/32",),
            ),
            resizer=upright.UprightResizer(
                image_size=64,
                encode_quality=90,
                min_image_size=1,
                max_aspect_ratio=9,
                max_pixels=10**6,
            ),
            sample_writer_class=None,
            thread_count=2,
            save_caption=True,
            extract_exif=False,
            output_folder=str(tmp_path),
            column_list=["row_id", "caption", "url"],
            timeout=1,
            number_sample_per_shard=10,
            oom_shard_count=5,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=None,
        )

    def test_it_survives_pickling(self, downloader: Any, hostile_server: HostileServer) -> None:
        again = pickle.loads(pickle.dumps(downloader))
        key, stream, error = again._fetch((3, hostile_server.url("good/160.jpg")), timeout=1)
        assert (key, stream.getvalue(), error) == (3, jpeg_of(160), None)

    def test_nothing_is_raised_out_of_a_thread(self, downloader: Any, worker: Any) -> None:
        for url in (None, "", "http://[", "\ud800", "http://127.0.0.1:1/\ud800"):
            key, stream, error = downloader._fetch((4, url))
            assert (key, stream) == (4, None)
            assert classify("failed_to_download", error) in (Cause.BAD_URL, Cause.CONNECTION)
        key, _, error = downloader._fetch((5, 17))
        assert classify("failed_to_download", error) is Cause.UNKNOWN

    def test_keys_are_row_ids(self, worker: Any) -> None:
        assert worker.key_of_row(7) == "000000007"
        assert worker.key_of_row(12_423_373) == "012423373"
        assert worker.key_of_row(12_345_678_901) == "12345678901"

    def test_a_full_disk_fails_the_shard(
        self, worker: Any, downloader: Any, hostile_server: HostileServer,
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        writer = importlib.import_module("img2dataset.writer")
        monkeypatch.setattr(writer.WebDatasetSampleWriter, "write", full)
        place = tmp_path / "0.feather"
        urls = [hostile_server.url(f"good/{number}.jpg") for number in range(200, 300)]
        columns = {"row_id": list(range(100)), "caption": ["a"] * 100, "url": urls}
        table = pa.table(columns)
        with pa.OSFile(str(place), "wb") as file, pa.ipc.new_file(file, table.schema) as arrow:
            arrow.write_table(table)
        with pytest.raises(RuntimeError, match="No space left on device"):
            downloader.download_shard((0, str(place)))
        assert not list(tmp_path.glob("*_stats.json"))
        asked = sum(hostile_server.requests[f"good/{number}.jpg"] for number in range(200, 300))
        assert asked < 50, "it went on although nothing could be written"


class TestJobs:
    """What a job refuses before it starts."""

    job = Job(table="t", shards="s", processes=1)

    def test_json_keeps_everything(self) -> None:
        job = replace(self.job, allow_addresses=("10.0.0.0/8",), extra_columns=("a", "b"))
        assert Job.from_json(job.to_json()) == job

    @pytest.mark.parametrize("changes", [
        {"processes": 0}, {"threads": 0}, {"samples_per_shard": 0}, {"encode_quality": 101},
        {"timeout_s": 0}, {"deadline_s": -1}, {"retries": -1}, {"max_aspect_ratio": 0.5},
        {"allow_addresses": ("10.0.0.1/8",)}, {"allow_addresses": ("localhost",)},
        {"distributor": "slurm"}, {"user_agent": "a\nHost: b"},
    ])  # fmt: skip
    def test_values_that_make_no_sense(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"\w"):
            replace(self.job, **changes)

    def test_unknown_fields(self) -> None:
        with pytest.raises(ValueError, match="unknown fields"):
            Job.from_json('{"table": "t", "shards": "s", "processes": 1, "thread": 3}')

    def test_missing_fields(self) -> None:
        with pytest.raises(ValueError, match="processes"):
            Job.from_json('{"table": "t", "shards": "s"}')

    def test_an_empty_table(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no parquet parts"):
            run_job(replace(self.job, table=str(tmp_path)))

    @pytest.mark.parametrize(("column", "text"), [
        ("caption", "has no column caption"), ("when", "json cannot hold"),
        ("missing", "no column missing"),
    ])  # fmt: skip
    def test_tables_that_would_lose_rows(self, tmp_path: Path, column: str, text: str) -> None:
        when = pa.array([0], pa.timestamp("s"))
        table = pa.table({"row_id": [1], "url": ["u"], "caption": ["c"], "when": when})
        dropped = table.drop_columns(["caption"]) if column == "caption" else table
        pq.write_table(dropped, tmp_path / "part-00000.parquet")
        extra = () if column == "caption" else (column,)
        with pytest.raises(ValueError, match=text):
            num_shards(replace(self.job, table=str(tmp_path), extra_columns=extra))

    @pytest.mark.parametrize("name", ["ray", "pyspark"])
    def test_a_distributor_that_is_not_installed(self, tmp_path: Path, name: Any) -> None:
        if importlib.util.find_spec(name) is not None:
            pytest.skip(f"{name} is installed")
        table = pa.table({"row_id": [1], "url": ["u"], "caption": ["c"]})
        pq.write_table(table, tmp_path / "part-00000.parquet")
        with pytest.raises(ValueError, match=f"pip install {name}"):
            run_job(replace(self.job, table=str(tmp_path), distributor=name))

    def test_shards_begin_anew_with_each_part(self, tmp_path: Path) -> None:
        for part, count in enumerate((5, 4, 1)):
            row_ids = list(range(count))
            table = pa.table({"row_id": row_ids, "url": ["u"] * count, "caption": ["c"] * count})
            pq.write_table(table, tmp_path / f"part-{part:05d}.parquet")
        assert num_shards(replace(self.job, table=str(tmp_path), samples_per_shard=2)) == 6

    def test_jobs_are_made_without_img2dataset(self) -> None:
        check = (
            "import sys, tools.download.img2dataset_job;"
            "sys.exit(any(name in sys.modules for name in ('img2dataset', 'cv2', 'pandas')))"
        )
        process = subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False)
        assert process.returncode == 0
