"""A table with every fault, against a server with every fault, to shards, however it is killed."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tessera.tools.download.causes import Cause, classify
from tessera.tools.download.shards import ShardBook
from tests.hostile_server import BAD_URLS, KINDS, PICTURES, HostileServer, size_of

ROOT = Path(__file__).resolve().parents[2]
NUM_ROWS = 2000
NUM_EACH_FAULT = 6
SLOW_TO_SERVE = ("huge", "endless", "gzipbomb", "bomb")
NUM_KILLS = 10
LATER = {"flaky503": Cause.SERVER_ERROR, "flaky429": Cause.RATE_LIMITED}
"""Kinds that fail at their first two requests, and how."""
OPTIONS = (
    *("--samples-per-shard", "200", "--processes", "2", "--threads", "32", "--image-size", "256"),
    *("--timeout", "3", "--deadline", "4", "--retries", "0", "--max-bytes", "2000000"),
    *("--allow-address", "127.0.0.1/32", "--no-dns-probe", "--min-free-gb", "0.2"),
    *("--stall-seconds", "60"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of the table and what should become of it."""

    line: bytes
    """As it stands in the file, with its line end."""
    caption: str
    """What its caption is, after the repairs that the table counts."""
    kind: str = ""
    """Kind of the hostile server."""
    cause: Cause | None = None
    """Why it fails; None for a picture that is stored."""
    dropped: str = ""
    """Why the table leaves it out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The table."""

    path: Path
    """A TSV."""
    rows: list[Row]
    """Its rows, by row id."""

    def stored(self) -> set[int]:
        """Rows that are to be stored, whatever happens."""
        return {
            n
            for n, row in enumerate(self.rows)
            if not (row.cause or row.dropped or row.kind in LATER)
        }


def awkward_caption(number: int) -> tuple[bytes, str]:
    """A caption as it stands in the file, and as it should end up."""
    texts = (
        f'"quoted" picture {number}',
        f'an unbalanced " in {number}',
        f"tab\tinside\t{number}",
        f"snow \N{SNOWMAN} and \N{GRINNING FACE} {number}",
        f"<b>markup</b> &amp; {number}, 'so' \\n",
        f"  spaces around {number}  ",
    )
    if number % 40 == 7:
        return b"caf\xe9 %d" % number, f"caf\N{REPLACEMENT CHARACTER} {number}"
    text = texts[number % len(texts)] if number % 3 == 0 else f"a plain caption of {number}"
    return text.encode(), text


def make_rows(server: HostileServer) -> list[Row]:
    """Rows in a fixed random order: each fault a few times, the rest good."""
    targets: list[tuple[str, str, Cause | None]] = []
    for kind, answer in KINDS.items():
        few = 1 if answer.is_slow else 2 if kind in SLOW_TO_SERVE else None
        numbers = range(few or NUM_EACH_FAULT)
        targets += [(server.url(f"{kind}/{number}.jpg"), kind, answer.cause) for number in numbers]
    targets += [(url, "", cause) for url, cause in BAD_URLS.items() if url]
    targets.append(("http://no-such-host.invalid/a.jpg", "", Cause.DNS_NO_HOST))
    repeated = [("duplicate_url", server.url(f"good/{1000 + n}.jpg")) for n in range(20)]
    num_good = NUM_ROWS - len(targets) - len(repeated) - 20
    targets += [(server.url(f"good/{1000 + n}.jpg"), "good", None) for n in range(num_good)]
    random.Random(3).shuffle(targets)
    rows = []
    for number, (url, kind, cause) in enumerate(targets):
        raw, caption = awkward_caption(number)
        end = b"\r\n" if number % 5 == 0 else b"\n"
        line = url.encode() + b"\t" + raw + end
        rows.append(Row(line=line, caption=caption, kind=kind, cause=cause))
    for why, url in repeated:
        caption = next(row.caption for row in rows if row.line.startswith(f"{url}\t".encode()))
        rows.append(Row(line=f"{url}\t{caption}\n".encode(), caption=caption, dropped=why))
    rows += [Row(line=b"\tno link\n", caption="", dropped="missing_url")] * 10
    url = server.url("good/5.jpg?again").encode()
    rows += [Row(line=url + b"\t \n", caption="", dropped="missing_caption")] * 10
    return rows


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as running:
        for kind in ("gzipbomb", "bomb"):  # made at the first request, which takes seconds
            with urllib.request.urlopen(running.url(f"{kind}/0.jpg"), timeout=60) as answer:
                answer.read()
        yield running


@pytest.fixture(scope="module")
def source(server: HostileServer, tmp_path_factory: pytest.TempPathFactory) -> Source:
    rows = make_rows(server)
    assert len(rows) == NUM_ROWS
    path = tmp_path_factory.mktemp("source") / "links.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(row.line for row in rows))
    return Source(path=path, rows=rows)


def living(process: subprocess.Popen[str]) -> list[int]:
    """Processes that a download started and that have not ended: those of its session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) == process.pid != int(entry.name) and state != "Z":
            found.append(int(entry.name))
    return found


def start(source: Source, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tessera.tools.download",
        str(out),
        "--table",
        str(source.path),
    ]
    return subprocess.Popen(
        [*command, *OPTIONS, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], out: Path) -> dict[str, object]:
    """Wait for the end of a download and return its JSON line."""
    output, errors = process.communicate(timeout=120)
    log = out / "download.log"
    tail = log.read_text(encoding="utf-8", errors="replace")[-3000:] if log.exists() else ""
    assert process.returncode == 0, f"{output}\n{errors}\n{tail}"
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def smooth(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a download that nothing disturbed."""
    out = tmp_path_factory.mktemp("smooth") / "out"
    line = finish(start(source, out), out)
    assert line["num_starts"] == 1
    assert (line["num_quarantined"], line["num_lost_workers"]) == (0, 0)
    return out


def samples(shards: Path) -> dict[int, dict[str, bytes]]:
    """Members of each sample in a folder of tars, by row id; every member is there once."""
    found: dict[int, dict[str, bytes]] = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                sample = found.setdefault(int(key), {})
                assert extension not in sample, f"{member.name} is there twice"
                file = tar.extractfile(member)
                assert file is not None
                sample[extension] = file.read()
    return found


def outcomes(out: Path) -> dict[int, Cause | None]:
    """What became of each row; each is there once."""
    found: dict[int, Cause | None] = {}
    book = ShardBook(out)
    book.refresh()
    for row in book.metadata().to_table().to_pylist():
        assert row["row_id"] not in found
        found[row["row_id"]] = classify(row["status"], row["error_message"])
    return found


def check_outcomes(out: Path, source: Source) -> None:
    """Hold every row of a finished download to what should become of it."""
    stored, found = samples(out / "shards"), outcomes(out)
    for number, row in enumerate(source.rows):
        if row.dropped:
            assert number not in found
        elif row.kind not in LATER:
            expected = {row.cause}
            if row.cause is Cause.DNS_NO_HOST:  # without a network, no name server says so
                expected.add(Cause.DNS_TEMPORARY)
            assert found[number] in expected, row
    late = {number for number, row in enumerate(source.rows) if row.kind in LATER}
    assert stored.keys() - late == source.stored()
    assert all(stored[n]["txt"] == source.rows[n].caption.encode() for n in stored)


def test_every_good_picture_is_stored_once_and_every_other_has_its_cause(
    smooth: Path, source: Source
) -> None:
    check_outcomes(smooth, source)


def test_pictures_are_those_of_their_rows(smooth: Path, source: Source) -> None:
    checked: Counter[str] = Counter()
    for number, sample in samples(smooth / "shards").items():
        row = source.rows[number]
        if row.kind not in PICTURES:
            continue
        url = row.line.split(b"\t")[0].decode()
        width, height = size_of(int(url.rpartition("/")[2].partition(".")[0]))
        with Image.open(io.BytesIO(sample["jpg"])) as image:
            assert image.format == "JPEG"
            assert max(1.0, min(width, height) / 256) == pytest.approx(
                width / image.width, rel=0.02
            )
            assert image.width / image.height == pytest.approx(width / height, rel=0.02)
        checked[row.kind] += 1
    assert checked.keys() == PICTURES.keys()


def test_report_counts_everything(smooth: Path, source: Source) -> None:
    report = json.loads((smooth / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["complete"]
    assert report["num_rows_of_source"] == NUM_ROWS
    dropped = Counter(row.dropped for row in source.rows if row.dropped)
    assert report["table"]["dropped"] == dropped
    assert report["num_rows"] == report["num_rows_tried"] == NUM_ROWS - dropped.total()
    repairs = report["table"]["repairs"]
    kept = [row for row in source.rows if not row.dropped]
    assert repairs["bom"] == 1
    assert repairs["crlf"] == sum(row.line.endswith(b"\r\n") for row in kept)
    assert repairs["undecodable_bytes"] == sum(
        "\N{REPLACEMENT CHARACTER}" in r.caption for r in kept
    )
    expected = Counter(str(row.cause) for row in kept if row.cause)
    expected.update(str(LATER[row.kind]) for row in kept if row.kind in LATER)
    found = {each["cause"]: each["count"] for each in report["failures"]}
    for counts in (expected, found):  # which of the two it is, the resolver decides
        counts["dns"] = counts.pop("dns_no_host", 0) + counts.pop("dns_temporary", 0)
    assert found == expected
    assert all(each["examples"] for each in report["failures"])
    assert report["num_stored"] + sum(found.values()) == report["num_rows"]
    page = (smooth / "report" / "report.html").read_text(encoding="utf-8")
    assert all(cause in page for cause in found if cause != "dns")


def test_the_index_holds_exactly_the_good_ones(
    smooth: Path, source: Source, tmp_path: Path
) -> None:
    command = [sys.executable, "tools/index_shards.py", str(smooth / "shards")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "index"), "--workers", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["num_samples"] == len(source.stored())
    assert line["num_rejected"] == 0
    index = str(tmp_path / "index")
    sizes = ("--total-samples", "128", "--batch-size", "32", "--optim.warmup-samples", "32")
    command = [sys.executable, "train.py", "flickr8k", "--model", "tessera-demo", *sizes]
    command += ["--data.train", index, "--evaluation.retrieval", index]
    trained = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run/report.html").is_file()


def test_the_same_command_again_does_nothing(smooth: Path, source: Source) -> None:
    before = {path: path.stat().st_mtime_ns for path in (smooth / "shards").iterdir()}
    assert finish(start(source, smooth), smooth)["num_starts"] == 0
    assert before == {path: path.stat().st_mtime_ns for path in (smooth / "shards").iterdir()}


def test_other_options_are_refused(smooth: Path, source: Source) -> None:
    process = start(source, smooth, "--image-size", "128")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "image_size was 256, now 128" in errors


def test_rows_that_recover_are_stored_by_the_second_pass(smooth: Path, source: Source) -> None:
    late = {number for number, row in enumerate(source.rows) if row.kind in LATER}
    assert not late & samples(smooth / "shards").keys()
    command = [sys.executable, "tools/retry_failed.py", str(smooth), "--retries", "1"]
    limits = ["--timeout", "3", "--deadline", "4", "--threads", "32"]
    done = subprocess.run(
        [*command, *limits], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    again = samples(smooth / "retry-01" / "shards")
    assert again.keys() == late
    assert all(again[n]["txt"] == source.rows[n].caption.encode() for n in late)


def test_sigterm_ends_it_cleanly(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(source, out)
    _wait(lambda: living(process))
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command resumes" in errors
    _wait(lambda: not living(process))
    assert not living(process)


def test_a_full_disk_stops_and_more_room_goes_on(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "small"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tessera-test", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    options = ("--limit", "400", "--min-free-gb", "0", "--ignore-disk")
    try:
        process = start(source, out, *options)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        assert "no room is left" in errors
        _wait(lambda: not living(process))
        assert not living(process)
        assert not _unfinished(out / "shards")
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        finish(start(source, out, *options), out)
        expected = {number for number in source.stored() if number < 400}
        late = {number for number, row in enumerate(source.rows) if row.kind in LATER}
        assert samples(out / "shards").keys() - late == expected
    finally:
        subprocess.run(["umount", str(out)], check=False)


def test_ten_kills_change_nothing(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dice = random.Random(11)
    kills: Counter[str] = Counter()
    num_midway = 0
    process = start(source, out)
    try:
        while kills.total() < NUM_KILLS:
            _wait(lambda: living(process))  # noqa: B023
            if kills.total() % 2 == 0:
                _wait(lambda: _unfinished(out / "shards"))
            time.sleep(dice.uniform(0.1, 3.0))
            last = kills.total() == NUM_KILLS - 1
            # The last one ends the parent: after three in vain it would give up by itself.
            what = "parent" if last else dice.choice(("parent", "group", "one"))
            num_midway += bool(_unfinished(out / "shards"))
            kills[what] += _kill(what, process, dice)
            if process.poll() is not None:
                _close(process)
                process = start(source, out)
        finish(process, out)
    finally:
        process.kill()
        _close(process)
    check_outcomes(out, source)
    assert not (out / "shards" / "_tmp").exists()
    assert num_midway >= 3, "too few of the kills came while a shard was being written"


def _wait(what: Callable[[], object]) -> None:
    give_up = time.monotonic() + 20
    while not what() and time.monotonic() < give_up:
        time.sleep(0.05)


def _unfinished(shards: Path) -> list[Path]:
    """Tars of shards that are being written."""
    return [p for p in shards.glob("*.tar") if not p.with_name(f"{p.stem}_stats.json").exists()]


def _kill(what: str, process: subprocess.Popen[str], dice: random.Random) -> int:
    """Kill the parent, all but it, or one of these; return 1 if there was one."""
    workers = living(process)
    if what == "parent" or not workers:
        process.kill()
        process.wait()
        _wait(lambda: not living(process))
        assert not living(process), "what the parent started outlives it"
        return 1
    for number in workers if what == "group" else [dice.choice(workers)]:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            return 0
    return 1


def _close(process: subprocess.Popen[str]) -> None:
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
