"""Every fault of the hostile server through the real fetcher, and the resolver's time limits."""

from __future__ import annotations

import functools
import http.server
import queue
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from tessera.tools.download import fetch as fetch_module
from tessera.tools.download.causes import Cause, RefusedError, classify
from tessera.tools.download.fetch import (
    Fetcher,
    FetchLimits,
    check_certificates,
    system_lookup,
    tls_context,
)
from tessera.tools.download.headers import agent_token, cause_of_status, opts_out
from tests.hostile_server import BAD_URLS, HTML, KINDS, HostileServer, jpeg_of

AGENT = "Mozilla/5.0 (compatible; TesseraDownloader/0.1)"
MAX_BYTES = 8 * 1024 * 1024
AFTER_THE_FETCH = {
    Cause.DAMAGED_IMAGE,
    Cause.TOO_MANY_PIXELS,
    Cause.TOO_SMALL,
    Cause.ASPECT_RATIO,
}
"""Causes that the resizer may find first."""


def fetcher(**changes: object) -> Fetcher:
    values: dict[str, object] = {
        "timeout_s": 0.4,
        "deadline_s": 1.2,
        "max_bytes": MAX_BYTES,
        "retries": 0,
        "user_agent": AGENT,
        "respect_opt_out": True,
        "allow_addresses": ("127.0.0.1/32",),
    }
    lookup = changes.pop("lookup", system_lookup)
    sleeps: list[float] = changes.pop("sleeps", [])  # pyright: ignore[reportAssignmentType]

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)

    return Fetcher(
        FetchLimits(**{**values, **changes}),  # pyright: ignore[reportArgumentType]
        lookup=lookup,  # pyright: ignore[reportArgumentType]
        sleep=sleep,
    )


def answers(*addresses: str) -> Callable[[str], list[Any]]:
    """A lookup that finds these for every host."""
    return lambda host: [(socket.AF_INET, 0, 0, "", (address, 0)) for address in addresses]


def cause_of(fetcher: Fetcher, url: str) -> Cause | None:
    try:
        fetcher.fetch(url)
    except RefusedError as error:
        return error.cause
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer(hostile_server: HostileServer, kind: str) -> None:
    expected = hostile_server.expected(f"{kind}/1.jpg")
    patient = fetcher(retries=2, timeout_s=20, deadline_s=60)
    started = time.monotonic()
    found = cause_of(
        fetcher() if KINDS[kind].is_slow else patient, hostile_server.url(f"{kind}/1.jpg")
    )
    assert found is expected or (found is None and expected in AFTER_THE_FETCH)
    assert not KINDS[kind].is_slow or time.monotonic() - started < 6


@pytest.mark.parametrize("url", BAD_URLS)
def test_every_bad_url_fails_before_anything_is_sent(url: str) -> None:
    assert cause_of(fetcher(), url) is BAD_URLS[url]


@pytest.mark.parametrize(
    "kind", ["good", "chunked", "gzip", "deflate", "rawdeflate", "redirect", "bilder mit ümlaut"]
)
def test_bytes_arrive_as_they_were(hostile_server: HostileServer, kind: str) -> None:
    assert fetcher().fetch(hostile_server.url(f"{kind}/2.jpg")) == jpeg_of(2)


@pytest.mark.parametrize("kind", ["notfound", "html", "noai", "loop", "limitedlong"])
def test_what_cannot_pass_is_asked_for_once(hostile_server: HostileServer, kind: str) -> None:
    """`limitedlong` asks for an hour's patience, which is the second pass's affair."""
    sleeps: list[float] = []
    patient = fetcher(retries=3, deadline_s=30, sleeps=sleeps)
    assert cause_of(patient, hostile_server.url(f"{kind}/3.jpg")) is KINDS[kind].cause
    assert (hostile_server.requests[f"{kind}/3.jpg"], sleeps) == (1, [])


def test_waits_grow_between_tries(hostile_server: HostileServer) -> None:
    sleeps: list[float] = []
    patient = fetcher(retries=3, deadline_s=30, sleeps=sleeps)
    assert cause_of(patient, hostile_server.url("broken/4.jpg")) is Cause.SERVER_ERROR
    assert hostile_server.requests["broken/4.jpg"] == 4
    assert all(0.5 <= wait / base <= 1.5 for wait, base in zip(sleeps, (0.5, 1, 2), strict=True))


@pytest.mark.parametrize("kind", ["drip", "dripheaders", "silent"])
def test_slow_answers_end_by_the_deadline(hostile_server: HostileServer, kind: str) -> None:
    started = time.monotonic()
    slow = fetcher(timeout_s=1, deadline_s=1, retries=5)
    assert cause_of(slow, hostile_server.url(f"{kind}/6.jpg")) is Cause.TIMEOUT
    assert 0.5 < time.monotonic() - started < 8
    assert hostile_server.requests[f"{kind}/6.jpg"] == 1


def test_who_asks_reservations_and_proxies(
    hostile_server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # is not used
    fetcher(user_agent="Someone/2").fetch(hostile_server.url("good/7.jpg"))
    assert hostile_server.agents["Someone/2"] == 1
    ruthless = fetcher(respect_opt_out=False)
    assert ruthless.fetch(hostile_server.url("noai/8.jpg")) == jpeg_of(8)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("noai", True),
        ("NoImageIndex, nofollow", True),
        ("none", True),
        ("noml", True),
        ("nofollow", False),
        ("otherbot: noai, noindex", False),
        ("otherbot: nofollow, tesseradownloader: noai", True),
        ("*: noai", True),
        ("max-image-preview: large, noindex", True),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noarchive", False),
    ],
)
def test_robots_tags(tag: str, expected: bool) -> None:
    headers = Message()
    headers["X-Robots-Tag"] = "archive"
    headers["X-Robots-Tag"] = tag
    assert opts_out(headers, agent_token(AGENT)) is expected


def test_names_that_resolve_to_this_network_are_refused(hostile_server: HostileServer) -> None:
    rebinding = answers("127.0.0.1")
    url = f"http://pictures.example:{hostile_server.port}/good/9.jpg"
    assert cause_of(fetcher(lookup=rebinding, allow_addresses=()), url) is Cause.ADDRESS_REFUSED
    assert fetcher(lookup=rebinding).fetch(url) == jpeg_of(9)
    assert hostile_server.requests["good/9.jpg"] == 1


def test_the_next_address_is_tried(hostile_server: HostileServer) -> None:
    url = f"http://pictures.example:{hostile_server.port}/good/10.jpg"
    for first in ("127.0.0.3", "10.0.0.1"):  # nobody listens on the first, the second is refused
        both = answers(first, "127.0.0.1")
        allowed = ("127.0.0.0/8",)
        assert fetcher(lookup=both, allow_addresses=allowed).fetch(url) == jpeg_of(10)


def test_a_resolver_without_an_answer_is_not_waited_for() -> None:
    released = threading.Event()

    def stuck(host: str) -> list[Any]:
        released.wait(20)
        return []

    started = time.monotonic()
    try:
        found = cause_of(fetcher(lookup=stuck), "http://pictures.example/a.jpg")
    finally:
        released.set()
    assert found is Cause.DNS_TEMPORARY
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    ("error", "cause", "lookups"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), Cause.DNS_NO_HOST, 1),
        (socket.gaierror(socket.EAI_AGAIN, "x"), Cause.DNS_TEMPORARY, 2),
        (UnicodeError("label too long"), Cause.DNS_TEMPORARY, 2),
    ],
)
def test_only_a_final_answer_of_the_resolver_is_kept(
    error: Exception, cause: Cause, lookups: int
) -> None:
    asked: list[str] = []

    def fails(host: str) -> list[Any]:
        asked.append(host)
        raise error

    client = fetcher(lookup=fails)
    for _ in range(2):
        with pytest.raises(RefusedError) as raised:
            client.fetch("http://pictures.example/a.jpg")
        assert raised.value.cause is cause
    assert len(asked) == lookups


def test_many_at_a_time_ask_for_a_host_once_and_keep_to_its_limit() -> None:
    asked: list[str] = []
    busy = most = 0
    lock = threading.Lock()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.05)
            with lock:
                busy -= 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(jpeg_of(1))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    def slowly(host: str) -> list[Any]:
        asked.append(host)
        time.sleep(0.1)
        return answers("127.0.0.1")(host)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    client = fetcher(lookup=slowly, per_host=3, timeout_s=5, deadline_s=5)
    url = f"http://pictures.example:{server.server_address[1]}/a.jpg"
    for _ in range(12):
        client.start(url, done.put)
    assert [done.get(timeout=20) for _ in range(12)] == [jpeg_of(1)] * 12
    assert asked == ["pictures.example"]
    assert most == 3
    server.shutdown()
    server.server_close()


def test_nobody_listening_and_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.jpg"
        assert cause_of(fetcher(), url) is Cause.HTTP_ERROR
        thread.join()
    assert cause_of(fetcher(), url) is Cause.CONNECTION


@pytest.fixture
def https_server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Port and certificate of a server that signed for itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", *names, "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    (tmp_path / "a.jpg").write_bytes(jpeg_of(12))
    (tmp_path / "b.jpg").write_bytes(HTML)
    serve = functools.partial(_QuietFiles, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], certificate
    server.shutdown()
    server.server_close()
    thread.join()


class _QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_https_with_and_without_a_valid_certificate(
    https_server: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, certificate = https_server
    url = f"https://127.0.0.1:{port}/a.jpg"
    assert cause_of(fetcher(), url) is Cause.TLS
    assert tls_context() is tls_context(), "one context serves the process"
    context = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(fetch_module, "tls_context", lambda: context)
    assert fetcher().fetch(url) == jpeg_of(12)
    assert cause_of(fetcher(), f"https://127.0.0.1:{port}/b.jpg") is Cause.NOT_AN_IMAGE
    assert cause_of(fetcher(), f"http://127.0.0.1:{port}/a.jpg") is not None


def test_a_python_without_certificate_authorities_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_certificates()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="SSL_CERT_FILE"):
        check_certificates()


def test_messages_of_failed_rows_are_read_back() -> None:
    assert classify("success", None) is None
    for cause in Cause:
        assert classify("failed_to_download", str(RefusedError(cause, "a: b"))) is cause
    for text in (None, "", "anything", "TIMEOUT: x"):
        assert classify("failed_to_resize", text) is Cause.UNKNOWN
    passing = {cause.value for cause in Cause if cause.retryable}
    names = {"rate_limited", "server_error", "dns_temporary", "timeout", "connection"}
    assert passing == names | {"incomplete"}


@pytest.mark.parametrize(("status", "cause"), [
    (400, "http_error"), (401, "forbidden"), (404, "not_found"), (408, "timeout"),
    (410, "not_found"), (429, "rate_limited"), (451, "forbidden"), (503, "server_error"),
    (999, "http_error"),
])  # fmt: skip
def test_http_statuses(status: int, cause: str) -> None:
    assert cause_of_status(status) == cause
