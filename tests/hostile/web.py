"""Answers of web servers to the downloader."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tessera.tools.download.causes import RefusedError
from tessera.tools.download.fetch import Fetcher, FetchLimits
from tests.decoder_pictures import encode, photo
from tests.hostile.harness import Parser


def _answers(_: Path) -> list[bytes]:
    picture = encode(photo(40, 30))
    packed = gzip.compress(picture)
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (picture[:99], picture[99:]))
    heads_and_bodies = [
        (b"Content-Length: %d" % len(picture), picture),
        (b"Content-Length: %d\r\nContent-Encoding: gzip" % len(packed), packed),
        (b"Transfer-Encoding: chunked", chunked + b"0\r\n\r\n"),
    ]
    return [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n" + head + b"\r\n\r\n" + body
        for head, body in heads_and_bodies
    ]


class _Server:
    """Answers every request with the same bytes, whatever they are."""

    def __init__(self) -> None:
        self.answer = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                try:
                    connection.recv(1 << 16)
                    connection.sendall(self.answer)
                except OSError:
                    continue


def _fetch(_: Path) -> Callable[[bytes], object]:
    server = _Server()
    fetcher = Fetcher(
        FetchLimits(
            timeout_s=2,
            deadline_s=4,
            max_bytes=1 << 20,
            retries=0,
            user_agent="Mozilla/5.0 (compatible; TesseraDownloader/0.1)",
            respect_opt_out=True,
            allow_addresses=("127.0.0.1/32",),
        )
    )

    def fetch(data: bytes) -> None:
        server.answer = data
        fetcher.fetch(f"http://127.0.0.1:{server.port}/1.jpg")

    return fetch


def parsers() -> Sequence[Parser]:
    """All of this module."""
    return [Parser(name="download: answers", files=_answers, open=_fetch, refusals=(RefusedError,))]
