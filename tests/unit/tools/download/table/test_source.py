"""Sources that have to be fetched first: over HTTP with interruptions, and through fsspec."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from tools.download.table import source as table_source
from tools.download.table.prepare import prepare_table, table_batches
from tools.download.table.source import combined_sha256, describe_file, local_files

CONTENT = "".join(f"https://h{n % 9}.example/{n}.jpg\tcaption {n}\n" for n in range(5000)).encode()


def quiet(_line: str) -> None:
    pass


@dataclass
class Server:
    """A loopback server of one file, which may break off."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    break_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers end early."""
    statuses: list[int] = field(default_factory=list)
    """Statuses of the next answers, before any content."""
    ranges: list[str | None] = field(default_factory=list)
    """What was asked for."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            start = 0
            if asked and self.headers.get("If-Range") == state.etag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start > len(state.content):
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.break_after.pop(0)] if state.break_after else body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/files/cc.tsv?x=1"
    monkeypatch.setattr(table_source, "_PAUSES_S", (0.0, 0.0))
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join(5)


def test_url_is_fetched_once(server: Server, tmp_path: Path) -> None:
    table = tmp_path / "out/table"
    summary = prepare_table(server.url, table, tell=quiet)
    copy = tmp_path / "out/source/cc.tsv"
    assert copy.read_bytes() == CONTENT
    assert summary.num_rows == 5000
    assert summary.source_sha256 == describe_file(copy, quiet).sha256
    assert prepare_table(server.url, table, tell=quiet) == summary
    assert local_files(server.url, copy.parent, quiet) == [copy]
    copy.unlink()
    assert prepare_table(server.url, table, tell=quiet) == summary  # the table suffices
    assert server.ranges == [None]


def test_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_after = [100_000, 50_000]
    (copy,) = local_files(server.url, tmp_path, quiet)
    assert copy.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_download_goes_on_after_a_restart(server: Server, tmp_path: Path) -> None:
    server.break_after = [100_000, 10_000, 10_000]
    with pytest.raises(OSError, match="goes on with it"):
        local_files(server.url, tmp_path, quiet)
    assert not (tmp_path / "cc.tsv").exists()
    (copy,) = local_files(server.url, tmp_path, quiet)
    assert copy.read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=120000-"


def test_parts_of_different_versions_are_not_joined(server: Server, tmp_path: Path) -> None:
    server.break_after = [100_000] * 3
    server.etag = None  # nothing to tell versions apart by: start over each time
    with pytest.raises(OSError, match="goes on with it"):
        local_files(server.url, tmp_path, quiet)
    assert server.ranges == [None, None, None]
    server.break_after, server.etag = [50_000] * 3, '"one"'
    with pytest.raises(OSError, match="goes on with it"):
        local_files(server.url, tmp_path, quiet)
    server.etag, server.content = '"two"', CONTENT[::-1]
    (copy,) = local_files(server.url, tmp_path, quiet)
    assert copy.read_bytes() == CONTENT[::-1]


def test_part_longer_than_the_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.break_after = [1000] * 3
    with pytest.raises(OSError, match="goes on with it"):
        local_files(server.url, tmp_path, quiet)
    (tmp_path / "cc.tsv.partial").write_bytes(b"x" * (len(CONTENT) + 1))
    (copy,) = local_files(server.url, tmp_path, quiet)
    assert copy.read_bytes() == CONTENT


def test_statuses(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    (copy,) = local_files(server.url, tmp_path, quiet)
    assert copy.read_bytes() == CONTENT
    server.statuses = [404]
    with pytest.raises(OSError, match="answers 404"):
        local_files(server.url, tmp_path / "other", quiet)
    assert len(server.ranges) == 4  # a 404 is not asked for again


def test_other_url_with_the_same_name_is_fetched(server: Server, tmp_path: Path) -> None:
    local_files(server.url, tmp_path, quiet)
    server.content = b"https://a/1.jpg\ta dog\n"
    (copy,) = local_files(server.url + "&y=2", tmp_path, quiet)
    assert copy.read_bytes() == server.content


def test_fsspec_file_and_folder(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    half = CONTENT.index(b"\n", len(CONTENT) // 2) + 1
    memory.pipe("/tables/a.tsv", CONTENT[:half])
    memory.pipe("/tables/b.tsv", CONTENT[half:])
    one = prepare_table("memory://tables/a.tsv", tmp_path / "one/table", tell=quiet)
    both = prepare_table("memory://tables", tmp_path / "both/table", tell=quiet)
    assert one.num_rows < both.num_rows == 5000
    rows = [row for batch in table_batches(tmp_path / "both/table") for row in batch.to_pylist()]
    assert all(row["caption"] == f"caption {row['row_id']}" for row in rows)
    with pytest.raises(FileNotFoundError):
        prepare_table("memory://none.tsv", tmp_path / "none/table", tell=quiet)
    memory.rm("/tables", recursive=True)


def test_fsspec_copy_goes_on(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/long.tsv", CONTENT)
    (copy,) = local_files("memory://long.tsv", tmp_path, quiet)
    copy.rename(tmp_path / "long.tsv.partial")
    with (tmp_path / "long.tsv.partial").open("r+b") as file:
        file.truncate(1000)
        file.seek(1000)
        file.write(b"KEPT")
    (copy,) = local_files("memory://long.tsv", tmp_path, quiet)
    content = copy.read_bytes()
    assert content[1000:1004] == b"KEPT"  # fetched from there on only
    assert content[1004:] == CONTENT[1004:]
    memory.pipe("/long.tsv", CONTENT[::-1])
    (copy,) = local_files("memory://long.tsv", tmp_path, quiet)
    assert copy.read_bytes() == CONTENT[::-1]
    memory.rm("/long.tsv")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_url: str) -> None:
        raise ImportError("install s3fs to access S3")

    monkeypatch.setattr(table_source, "url_to_fs", absent)
    with pytest.raises(ValueError, match="install s3fs"):
        local_files("s3://bucket/t.tsv", tmp_path, quiet)


def test_sha256_of_several_files_depends_on_their_order(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        files.append(describe_file(tmp_path / name, quiet))
    assert combined_sha256(files) != combined_sha256(files[::-1])
    assert combined_sha256(files[:1]) == files[0].sha256


def test_file_url(tmp_path: Path) -> None:
    path = tmp_path / "with space.tsv"
    path.write_bytes(CONTENT)
    assert local_files(path.as_uri(), tmp_path, quiet) == [path]
