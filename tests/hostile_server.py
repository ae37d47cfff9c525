"""A web server on 127.0.0.1 that serves good pictures and everything that goes wrong with URLs.

    with HostileServer() as server:
        server.url("good/000123.jpg")       # a picture of its own size and colours
        server.expected("notfound/7.jpg")   # Cause.NOT_FOUND

A path is KIND/NUMBER.jpg; `KINDS` names the kinds. Pictures follow from the number alone.
"""

from __future__ import annotations

import functools
import gzip
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import unquote

from tessera.tools.download.causes import Cause
from tests.hostile_pictures import PICTURES, jpeg_of, pixel_bomb, plain, size_of

HUGE_BYTES = 96 * 1024 * 1024
FAILURES_BEFORE_SUCCESS = 2
"""Requests that a `flaky…` path refuses before it answers well."""

Handler = Any


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to answer."""

    serve: Callable[[Handler, int], None]
    cause: Cause | None = None
    """What becomes of it; None for a picture that ends in a shard."""
    is_slow: bool = False
    """It holds a fetch until its time is over."""


def _status(code: int, headers: dict[str, str] | None = None) -> Callable[[Handler, int], None]:
    return lambda handler, number: handler.answer(b"no", status=code, headers=headers)


def _body(
    make: Callable[[int], bytes] | bytes,
    content_type: str = "image/jpeg",
    headers: dict[str, str] | None = None,
) -> Callable[[Handler, int], None]:
    def serve(handler: Handler, number: int) -> None:
        data = make if isinstance(make, bytes) else make(number)
        handler.answer(data, content_type=content_type, headers=headers)

    return serve


def _redirect(target: str, status: int = 302) -> Callable[[Handler, int], None]:
    return lambda handler, number: handler.answer(
        b"", status=status, headers={"Location": target.format(number=number)}
    )


def _flaky(status: int, headers: dict[str, str] | None = None) -> Callable[[Handler, int], None]:
    def serve(handler: Handler, number: int) -> None:
        if handler.times_asked() <= FAILURES_BEFORE_SUCCESS:
            handler.answer(b"later", status=status, headers=headers)
        else:
            handler.answer(jpeg_of(number))

    return serve


def _announced(factor: float, *, announce: bool = True, sent: float = 1) -> Callable:
    """A JPEG whose announced length is `factor` of its own, of which the share `sent` is sent."""

    def serve(handler: Handler, number: int) -> None:
        data = jpeg_of(number)
        length = str(int(len(data) * factor)) if announce else None
        handler.start(content_length=length)
        handler.wfile.write(data[: int(len(data) * sent)])

    return serve


def _reset(handler: Handler, number: int) -> None:
    data = jpeg_of(number)
    handler.start(content_length=str(len(data)))
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    # Closing with a linger of 0 seconds sends RST instead of FIN.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def _drip(handler: Handler, number: int) -> None:
    data = jpeg_of(number)
    handler.start(content_length=str(len(data)))
    for start in range(len(data)):
        handler.wfile.write(data[start : start + 1])
        if handler.pause(0.05):
            return


def _drip_headers(handler: Handler, number: int) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for line in range(10_000):
        handler.wfile.write(b"X-%d-%d: 1\r\n" % (number, line))
        if handler.pause(0.2):
            return


def _silent(handler: Handler, number: int) -> None:
    handler.pause(600)


def _hang_up(handler: Handler, number: int) -> None:
    handler.connection.close()


def _huge(*, announce: bool) -> Callable[[Handler, int], None]:
    def serve(handler: Handler, number: int) -> None:
        handler.start(content_length=str(HUGE_BYTES) if announce else None)
        handler.wfile.write(b"\xff\xd8\xff\xe0")
        for _ in range(HUGE_BYTES >> 20):
            handler.wfile.write(bytes(1 << 20))

    return serve


def _chunked(handler: Handler, number: int) -> None:
    data = jpeg_of(number)
    handler.start(headers={"Transfer-Encoding": "chunked"})
    for start in range(0, len(data), 1000):
        part = data[start : start + 1000]
        handler.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def _chain(handler: Handler, number: int) -> None:
    handler.answer(b"", status=302, headers={"Location": f"/chain/{number + 1}.jpg"})


@functools.cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(HUGE_BYTES), 6)


def _raw_deflate(number: int) -> bytes:
    return zlib.compress(jpeg_of(number))[2:-4]


HTML = b"<!DOCTYPE html><html><body>This picture was moved.</body></html>"
XML = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"><rect/></svg>'
GZIP = {"Content-Encoding": "gzip"}

__all__ = ["BAD_URLS", "KINDS", "PICTURES", "HostileServer", "Kind", "jpeg_of", "size_of"]

KINDS: dict[str, Kind] = {
    **{name: Kind(serve=_body(make)) for name, make in PICTURES.items()},
    "bilder mit ümlaut": Kind(serve=_body(jpeg_of)),
    "chunked": Kind(serve=_chunked),
    "gzip": Kind(serve=_body(lambda n: gzip.compress(jpeg_of(n)), headers=GZIP)),
    "deflate": Kind(
        serve=_body(lambda n: zlib.compress(jpeg_of(n)), headers={"Content-Encoding": "deflate"})
    ),
    "rawdeflate": Kind(serve=_body(_raw_deflate, headers={"Content-Encoding": "deflate"})),
    "otherbot": Kind(serve=_body(jpeg_of, headers={"X-Robots-Tag": "otherbot: noai, noindex"})),
    "flaky503": Kind(serve=_flaky(503)),
    "flaky429": Kind(serve=_flaky(429, {"Retry-After": "0"})),
    "redirect": Kind(serve=_redirect("/good/{number}.jpg")),
    "redirect308": Kind(serve=_redirect("/good/{number}.jpg?a=b c", 308)),
    "notfound": Kind(serve=_status(404), cause=Cause.NOT_FOUND),
    "gone": Kind(serve=_status(410), cause=Cause.NOT_FOUND),
    "unauthorized": Kind(serve=_status(401), cause=Cause.FORBIDDEN),
    "forbidden": Kind(serve=_status(403), cause=Cause.FORBIDDEN),
    "legal": Kind(serve=_status(451), cause=Cause.FORBIDDEN),
    "teapot": Kind(serve=_status(418), cause=Cause.HTTP_ERROR),
    "limited": Kind(serve=_status(429), cause=Cause.RATE_LIMITED),
    "limitedlong": Kind(serve=_status(429, {"Retry-After": "3600"}), cause=Cause.RATE_LIMITED),
    "broken": Kind(serve=_status(500), cause=Cause.SERVER_ERROR),
    "loop": Kind(serve=_redirect("/loop/{number}.jpg"), cause=Cause.REDIRECTS),
    "chain": Kind(serve=_chain, cause=Cause.REDIRECTS),
    "nowhere": Kind(serve=_status(302), cause=Cause.REDIRECTS),
    "tofile": Kind(serve=_redirect("file:///etc/hostname"), cause=Cause.ADDRESS_REFUSED),
    "todata": Kind(serve=_redirect("data:image/gif;base64,R0lG"), cause=Cause.ADDRESS_REFUSED),
    "toloopback": Kind(
        serve=_redirect("http://127.0.0.2/good/{number}.jpg"), cause=Cause.ADDRESS_REFUSED
    ),
    "toprivate": Kind(serve=_redirect("http://10.0.0.1/a.jpg"), cause=Cause.ADDRESS_REFUSED),
    "tometadata": Kind(
        serve=_redirect("http://169.254.169.254/latest/meta-data"), cause=Cause.ADDRESS_REFUSED
    ),
    "empty": Kind(serve=_body(b""), cause=Cause.EMPTY),
    "html": Kind(serve=_body(HTML), cause=Cause.NOT_AN_IMAGE),
    "xml": Kind(serve=_body(XML), cause=Cause.NOT_AN_IMAGE),
    "svg": Kind(serve=_body(SVG, "image/svg+xml"), cause=Cause.NOT_AN_IMAGE),
    "text": Kind(serve=_body(b"hotlinking is not allowed"), cause=Cause.NOT_AN_IMAGE),
    "noai": Kind(
        serve=_body(jpeg_of, headers={"X-Robots-Tag": "noai, noimageai"}), cause=Cause.OPT_OUT
    ),
    "noindex": Kind(serve=_body(jpeg_of, headers={"X-Robots-Tag": "noindex"}), cause=Cause.OPT_OUT),
    "tdm": Kind(serve=_body(jpeg_of, headers={"TDM-Reservation": "1"}), cause=Cause.OPT_OUT),
    "toolong": Kind(serve=_announced(1.5), cause=Cause.INCOMPLETE),
    "cutoff": Kind(serve=_announced(1, sent=0.5), cause=Cause.INCOMPLETE),
    "tooshort": Kind(serve=_announced(0.5), cause=Cause.DAMAGED_IMAGE),
    "truncated": Kind(serve=_announced(1, announce=False, sent=0.5), cause=Cause.DAMAGED_IMAGE),
    "reset": Kind(serve=_reset, cause=Cause.CONNECTION),
    "hangup": Kind(serve=_hang_up, cause=Cause.CONNECTION),
    "huge": Kind(serve=_huge(announce=True), cause=Cause.TOO_MANY_BYTES),
    "endless": Kind(serve=_huge(announce=False), cause=Cause.TOO_MANY_BYTES),
    "gzipbomb": Kind(serve=_body(lambda n: _gzip_bomb(), headers=GZIP), cause=Cause.TOO_MANY_BYTES),
    "bomb": Kind(serve=_body(lambda n: pixel_bomb()), cause=Cause.TOO_MANY_PIXELS),
    "tiny": Kind(serve=_body(plain(1, 1, "GIF")), cause=Cause.TOO_SMALL),
    "wide": Kind(serve=_body(plain(900, 90)), cause=Cause.ASPECT_RATIO),
    "pdf": Kind(serve=_body(b"%PDF-1.7 and so on"), cause=Cause.NOT_AN_IMAGE),
    "ico": Kind(serve=_body(b"\0\0\1\0" + bytes(60)), cause=Cause.UNSUPPORTED_IMAGE),
    "drip": Kind(serve=_drip, cause=Cause.TIMEOUT, is_slow=True),
    "dripheaders": Kind(serve=_drip_headers, cause=Cause.TIMEOUT, is_slow=True),
    "silent": Kind(serve=_silent, cause=Cause.TIMEOUT, is_slow=True),
}

BAD_URLS: dict[str, Cause] = {
    "file:///etc/hostname": Cause.ADDRESS_REFUSED,
    "data:image/gif;base64,R0lGODlhAQABAAAAACw=": Cause.ADDRESS_REFUSED,
    "ftp://127.0.0.1/a.jpg": Cause.ADDRESS_REFUSED,
    "http://10.1.2.3/a.jpg": Cause.ADDRESS_REFUSED,
    "http://192.168.0.1/a.jpg": Cause.ADDRESS_REFUSED,
    "http://169.254.169.254/latest/meta-data": Cause.ADDRESS_REFUSED,
    "http://100.64.0.1/a.jpg": Cause.ADDRESS_REFUSED,
    "http://0.0.0.0/a.jpg": Cause.ADDRESS_REFUSED,
    "http://2130706434/a.jpg": Cause.ADDRESS_REFUSED,
    "http://0x7f.2/a.jpg": Cause.ADDRESS_REFUSED,
    "http://127.0.0.2:8080/a.jpg": Cause.ADDRESS_REFUSED,
    "http://[::1]/a.jpg": Cause.ADDRESS_REFUSED,
    "http://[::ffff:127.0.0.2]/a.jpg": Cause.ADDRESS_REFUSED,
    "http://[64:ff9b::7f00:2]/a.jpg": Cause.ADDRESS_REFUSED,
    "http://[fe80::1]/a.jpg": Cause.ADDRESS_REFUSED,
    "http://8.8.8.8:22/a.jpg": Cause.ADDRESS_REFUSED,
    "": Cause.BAD_URL,
    "not a url": Cause.BAD_URL,
    "http://": Cause.BAD_URL,
    "http://exa mple/a.jpg": Cause.BAD_URL,
    "http://127.0.0.1:99999/a.jpg": Cause.BAD_URL,
    "http://[::1/a.jpg": Cause.BAD_URL,
}
"""URLs that fail before anything is sent, where only 127.0.0.1/32 is allowed."""


class HostileServer:
    """The server, in threads of this process; a context manager."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        """Requests so far by path without the leading slash."""
        self.agents: Counter[str] = Counter()
        """Requests so far by the name that the client gave itself."""
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hostile = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_address[1]

    def url(self, path: str) -> str:
        """The URL of a path, with its spaces and letters as they are."""
        return f"http://127.0.0.1:{self.port}/{path}"

    def expected(self, path: str) -> Cause | None:
        """What a downloader should say about a path; None for a picture that is to be stored."""
        return KINDS[path.partition("/")[0]].cause

    def count(self, path: str, agent: str) -> None:
        """Note one request."""
        with self._lock:
            self.requests[path] += 1
            self.agents[agent] += 1

    def __enter__(self) -> HostileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    hostile: HostileServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what this server is for: say nothing."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.asked = unquote(self.path.partition("?")[0]).lstrip("/")
        self.server.hostile.count(self.asked, self.headers.get("User-Agent", ""))
        kind, _, name = self.asked.partition("/")
        digits = name.partition(".")[0]
        if kind not in KINDS or not digits.isdigit():
            self.answer(b"no such kind", status=404)
            return
        KINDS[kind].serve(self, int(digits))

    def times_asked(self) -> int:
        """How often this path was asked for, this time included."""
        return self.server.hostile.requests[self.asked]

    def start(
        self, *, content_length: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """The head of a good answer."""
        version = "HTTP/1.1" if headers and "Transfer-Encoding" in headers else "HTTP/1.0"
        self.protocol_version = version
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        if content_length is not None:
            self.send_header("Content-Length", content_length)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def answer(
        self,
        data: bytes,
        *,
        status: int = 200,
        content_type: str = "image/jpeg",
        headers: dict[str, str] | None = None,
    ) -> None:
        """A whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def pause(self, seconds: float) -> bool:
        """Wait; true when the server is being closed or the client has gone."""
        end = time.monotonic() + seconds
        while not self.server.hostile.closing.wait(min(0.2, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                return False
            if self._client_has_gone():
                return True
        return True

    def _client_has_gone(self) -> bool:
        connection = cast("socket.socket", self.connection)
        try:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""
