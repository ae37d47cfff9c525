from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tessera.pipeline.index import Index, open_index

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TESSERA_DATA", ROOT.parent / "shared" / "data"))
FLICKR = DATA / "flickr8k-dev"

needs_flickr = pytest.mark.skipif(
    not FLICKR.is_dir(), reason=f"{FLICKR} is absent; set TESSERA_DATA to the test photos"
)


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/index_shards.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def flickr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, str]:
    """The index of flickr8k-dev, and what the tool printed."""
    out = tmp_path_factory.mktemp("flickr") / "index"
    done = run_tool(FLICKR, "--out", out, "--captions", "json:captions", "--workers", 1)
    assert done.returncode == 0, done.stderr
    return open_index(out), done.stdout


@needs_flickr
def test_all_of_flickr8k_dev_is_indexed(flickr: tuple[Index, str]) -> None:
    index, printed = flickr
    summary = json.loads(printed.splitlines()[-1])
    assert (summary["num_samples"], summary["num_texts"]) == (1000, 5000)
    assert summary["num_rejected"] == 0
    assert summary["fingerprint"] == index.fingerprint
    assert index.captions().first_text.tolist() == list(range(0, 5001, 5))
    assert set(index.width.tolist()) == set(index.height.tolist()) == {224}
    index.check_shards()


@needs_flickr
def test_tokens_of_all_captions_equal_open_clip(flickr: tuple[Index, str]) -> None:
    import open_clip

    table = flickr[0].captions()
    rows = np.arange(table.num_texts)
    padded = open_clip.get_tokenizer("ViT-B-16")(table.texts(rows)).numpy()
    tokens, offsets = table.pack(rows, 77)
    ours = np.zeros_like(padded)
    ours[np.arange(77) < np.diff(offsets)[:, None]] = tokens
    np.testing.assert_array_equal(ours, padded)


@needs_flickr
def test_texts_equal_the_json_of_the_shard(flickr: tuple[Index, str]) -> None:
    import tarfile

    index, _ = flickr
    table = index.captions()
    (key,) = index.keys(np.array([7]))
    with tarfile.open(index.shards[0].location) as tar:
        member = tar.extractfile(f"{key}.json")
        assert member is not None
        expected = json.load(member)["captions"]
    rows, _ = table.rows(np.array([7]))
    assert table.texts(rows) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/at/all"], "there is no /nowhere/at/all"),
        ([], "name at least one tar file"),
        ([ROOT / "tools"], "holds no *.tar"),
        (["/nowhere", "--workers", "0"], "--workers must be at least 1"),
    ],
)
def test_wrong_use_gives_one_line_and_status_2(
    tmp_path: Path, arguments: list[object], message: str
) -> None:
    done = run_tool(*arguments, "--out", tmp_path / "index")
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def start_tool(out: Path) -> tuple[subprocess.Popen[str], list[str]]:
    shards = sorted((DATA / "flickr8k-train").glob("*.tar"))
    arguments = [*map(str, shards), "--workers", "1", "--no-full-decode", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "tools/index_shards.py", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, arguments


def wait_for_scans(work: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(work.glob("scans/*.arrow"))) < count and time.monotonic() < deadline:
        time.sleep(0.01)


@needs_flickr
def test_interrupt_gives_status_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    process, _ = start_tool(tmp_path / "index")
    wait_for_scans(tmp_path / ".index.partial", 1)
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert printed == ""
    assert told.splitlines()[-1] == "stopped; the same command resumes where it was"
    assert not (tmp_path / "index").exists()


@needs_flickr
def test_killed_run_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    process, arguments = start_tool(tmp_path / "index")
    wait_for_scans(tmp_path / ".index.partial", 2)
    process.kill()
    process.communicate()
    done = json.loads(run_tool(*arguments).stdout.splitlines()[-1])
    assert 1 <= done["num_scanned_shards"] <= 4
    new = run_tool(*arguments[:-1], tmp_path / "new")
    assert json.loads(new.stdout.splitlines()[-1])["fingerprint"] == done["fingerprint"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "new"]


@needs_flickr
def test_report_page_is_written(tmp_path: Path) -> None:
    done = run_tool(
        FLICKR, "--out", tmp_path / "index", "--columns", "url", "score:float", "--no-full-decode",
        "--sha256",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "index/report.html").read_text()
    assert "1,000 of 1,000 samples can be trained on" in page
    assert "<svg" in page
    report = json.loads((tmp_path / "index/report.json").read_text())
    assert sum(report["histograms"]["shorter_side"]["counts"]) == 1000
