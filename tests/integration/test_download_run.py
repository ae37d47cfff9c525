"""Real runs of img2dataset with the workers of this download, against the hostile server."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.tools.download.job import Job
from tessera.tools.download.run import (
    DownloadFailedError,
    default_stall_s,
    exclusive,
    progress_bar,
    run_download,
    show,
)
from tessera.tools.download.shards import ShardBook
from tessera.tools.download.table.prepare import prepare_table
from tests.hostile_server import PICTURES, HostileServer

ROOT = Path(__file__).resolve().parents[2]
RUNNER = """\
import os, sys, time
from pathlib import Path
from tessera.tools.download.job import Job
from tessera.tools.download.run import run_download
from tessera.tools.download.upright import UprightResizer

resize = UprightResizer.__call__

def deadly(self, stream):
    if len(stream.getvalue()) == POISON:
        if HOW == "kill":
            os.kill(os.getpid(), 9)
        elif not Path("hung").exists():
            Path("hung").touch()
            time.sleep(100)
    return resize(self, stream)

UprightResizer.__call__ = deadly
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(run_download(Job.load(folder), folder, min_free_bytes=0, stall_s=STALL))
"""


@pytest.fixture(scope="module")
def hostile_server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


def make_job(folder: Path, urls: list[str], **changes: object) -> Job:
    (folder / "table").mkdir(parents=True)
    ids = [5000 + number for number in range(len(urls))]
    captions = [
        "plain",
        "\u00fcml\u00e4\u00fct \u65e5\u672c",
        "tab\there",
        ' "quoted" ',
        "",
        "a\nb",
    ]
    table = pa.table(
        {
            "row_id": ids,
            "url": urls,
            "caption": [captions[number % 6] for number in range(len(urls))],
            "score": [number / 2 for number in range(len(urls))],
        }
    )
    pq.write_table(table, folder / "table/part-00000.parquet")
    values = {"table": str(folder / "table"), "shards": str(folder / "shards"), "processes": 2}
    values |= {"samples_per_shard": 10, "allow_addresses": ("127.0.0.1/32",), "threads": 8}
    job = Job(**values | {"extra_columns": ("score",)} | changes)  # type: ignore[arg-type]
    (folder / "job.json").write_text(job.to_json())
    return job


def start(folder: Path, *, poison: int = -1, how: str = "kill", stall_s: float = 100) -> str:
    script = folder / "run_it.py"
    values = f"POISON, HOW, STALL = {poison}, {how!r}, {stall_s}\n"
    script.write_text(values + RUNNER)
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "https_proxy": "http://127.0.0.1:9"},
    )
    return done.stdout + done.stderr


def rows_of(folder: Path) -> list[dict]:
    return [
        row
        for path in sorted(folder.glob("shards/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def test_what_is_stored_of_a_row(hostile_server: HostileServer, tmp_path: Path) -> None:
    urls = [hostile_server.url(f"{kind}/{300 + n}.jpg") for n, kind in enumerate(PICTURES)]
    make_job(tmp_path, [*urls, hostile_server.url("notfound/9.jpg"), "", "http://["])
    said = start(tmp_path)
    assert "'num_starts': 1" in said, said
    rows = {row["row_id"] - 5000: row for row in rows_of(tmp_path)}
    assert len(rows) == len(urls) + 3
    members: dict[str, bytes] = {}
    for path in sorted(tmp_path.glob("shards/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                assert not member.pax_headers, "two headers a member are a kilobyte"
                members[member.name] = file.read()
    for number, url in enumerate(urls):
        row = rows[number]
        data = PICTURES[url.split("/")[3]](300 + number)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["score"] == number / 2
        assert members[f"{5000 + number:09d}.txt"].decode() == row["caption"]
        assert members[f"{5000 + number:09d}.jpg"].startswith(b"\xff\xd8")
    assert len(members) == 2 * len(urls)
    messages = {row["error_message"] for row in rows.values() if row["error_message"]}
    assert not [text for text in messages if "127.0.0.1" in text or "http:" in text]
    log = (tmp_path / "download.log").read_text()
    assert "addresses in 127.0.0.1/32 are fetched from" in log
    assert "HTTPS_PROXY is not used" in log
    assert "Traceback" not in log


def test_a_picture_that_ends_its_worker_costs_its_own_shard(
    hostile_server: HostileServer, tmp_path: Path
) -> None:
    make_job(tmp_path, [hostile_server.url(f"good/{400 + n}.jpg") for n in range(40)])
    said = start(tmp_path, poison=len(PICTURES["good"](405)))
    assert re.search(r"1 shards of 4 could not be finished in 3 rounds \(first: 0\)", said), said
    book = ShardBook(tmp_path)
    book.refresh()
    assert list(book.finished) == [1, 2, 3]
    assert not list(tmp_path.glob("shards/00000*"))
    assert "the worker of shard 0 was killed" in said
    assert "'num_lost_workers': 0" in start(tmp_path)  # without the poison it resumes
    assert len({row["row_id"] for row in rows_of(tmp_path)}) == 40


def test_a_worker_that_hangs_is_replaced(hostile_server: HostileServer, tmp_path: Path) -> None:
    make_job(tmp_path, [hostile_server.url(f"good/{460 + n}.jpg") for n in range(20)])
    said = start(tmp_path, poison=len(PICTURES["good"](465)), how="hang", stall_s=12)
    assert "nothing moved for 12 s: workers are replaced" in said
    assert len({row["row_id"] for row in rows_of(tmp_path)}) == 20


def test_a_shard_that_cannot_be_written_is_not_done(
    hostile_server: HostileServer, tmp_path: Path
) -> None:
    make_job(tmp_path, [hostile_server.url("good/450.jpg")])
    (tmp_path / "shards/00000.tar/x").mkdir(parents=True)
    assert "1 shards of 1 could not be finished" in start(tmp_path)
    assert not list(tmp_path.glob("shards/*_stats.json"))


def test_starts_that_are_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, ["u"])
    with pytest.raises(DownloadFailedError, match="no room is left"):
        run_download(job, tmp_path, min_free_bytes=1 << 60)
    with pytest.raises(ValueError, match="image_size was 256, now 128"):
        run_download(make_job(tmp_path / "x", ["u"], image_size=128), tmp_path)
    for name in ("ray", "pyspark"):
        other = make_job(tmp_path / name, ["u"], distributor=name)
        with pytest.raises(ValueError, match=f"pip install {name}"):
            run_download(other, tmp_path / name)
    with exclusive(tmp_path), exclusive(tmp_path):  # one process may nest it
        code = "import sys, pathlib; from tessera.tools.download.run import exclusive\n"
        code += "with exclusive(pathlib.Path(sys.argv[1])): pass"
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert f"at work in {tmp_path} (process {os.getpid()}" in done.stderr
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_stall_leaves_time_for_a_row_that_reaches_every_limit() -> None:
    assert default_stall_s(Job(table="t", shards="s")) == 300
    assert default_stall_s(Job(table="t", shards="s", deadline_s=90, retries=4)) == 900


def test_progress_writes_lines_where_nobody_looks() -> None:
    stream = io.StringIO()
    bar = progress_bar(1000, 100, stream)
    causes = Counter({"timeout": 30, "not_found": 9, "tls": 2, "empty": 1})
    show(bar, 200, 150, causes)
    bar.write("a message", file=stream)
    bar.close()
    *_, last = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert "a message\n" in stream.getvalue()
    for text in ("200 of 1000 rows", "75.0% stored", "30 timeout; 9 not_found; 2 tls", "row/s"):
        assert text in last
    assert "empty" not in last


def test_help_needs_no_environment_and_installs_none(tmp_path: Path) -> None:
    environment = {**os.environ, "TESSERA_DOWNLOAD_ENV": str(tmp_path / "env")}
    environment.pop("TESSERA_DOWNLOAD_PYTHON", None)
    command = ["bash", str(ROOT / "tools/download_cc12m.sh"), "OUT", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "--rows-per-host" in done.stdout
    assert not (tmp_path / "env").exists()
    code = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p];"
    code += "from tessera.tools.download.__main__ import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_a_table_on_a_web_server_is_fetched_once(tmp_path: Path) -> None:
    text = "".join(f"https://h.example/{n}.jpg\tcaption {n}\n" for n in range(200_000))
    (tmp_path / "www").mkdir()
    (tmp_path / "www/t.tsv").write_text(text)
    code = (
        "import functools, http.server as h, sys\n"
        "server = h.ThreadingHTTPServer(('127.0.0.1', 0),\n"
        "    functools.partial(h.SimpleHTTPRequestHandler, directory=sys.argv[1]))\n"
        "print(server.server_address[1], flush=True); server.serve_forever()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "www")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/t.tsv"
        try:
            assert prepare_table(url, tmp_path / "out/table").num_rows == 200_000
            with pytest.raises(FileNotFoundError):
                prepare_table(url + "x", tmp_path / "none/table")
        finally:
            server.kill()
    assert (tmp_path / "out/source/t.tsv").read_text() == text
    assert prepare_table(url, tmp_path / "out/table").num_rows == 200_000  # without the server
