"""Every fault of the hostile server through the real fetcher, and the resolver's time limits."""

from __future__ import annotations

import functools
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from email.message import Message
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.hostile_server import BAD_URLS, HTML, KINDS, HostileServer, jpeg_of
from tools.download import fetch as fetch_module
from tools.download.addresses import Address, FetchError
from tools.download.causes import Cause
from tools.download.fetch import Fetcher, FetchLimits, check_certificates, tls_context
from tools.download.opt_out import agent_token, opts_out
from tools.download.resolver import Resolver, system_lookup

AGENT = "Mozilla/5.0 (compatible; TesseraDownloader/0.1)"
MAX_BYTES = 8 * 1024 * 1024
AFTER_THE_FETCH = {
    Cause.DAMAGED_IMAGE,
    Cause.TOO_MANY_PIXELS,
    Cause.TOO_SMALL,
    Cause.ASPECT_RATIO,
}
"""Causes that only the resizer finds."""


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
    resolver = changes.pop("resolver", None)
    sleeps = changes.pop("sleeps", [])
    return Fetcher(
        FetchLimits(**{**values, **changes}),  # pyright: ignore[reportArgumentType]
        resolver=resolver,  # pyright: ignore[reportArgumentType]
        sleep=sleeps.append,  # pyright: ignore[reportAttributeAccessIssue]
    )


def cause_of(fetcher: Fetcher, url: str) -> Cause | None:
    try:
        fetcher.fetch(url)
    except FetchError as error:
        return error.cause
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer(hostile_server: HostileServer, kind: str) -> None:
    expected = hostile_server.expected(f"{kind}/1.jpg")
    patient = fetcher(retries=2, timeout_s=5, deadline_s=20)
    started = time.monotonic()
    found = cause_of(
        fetcher() if KINDS[kind].is_slow else patient, hostile_server.url(f"{kind}/1.jpg")
    )
    assert found is (None if expected in AFTER_THE_FETCH else expected)
    assert time.monotonic() - started < 6


@pytest.mark.parametrize("url", BAD_URLS)
def test_every_bad_url_fails_before_anything_is_sent(url: str) -> None:
    assert cause_of(fetcher(), url) is BAD_URLS[url]


@pytest.mark.parametrize(
    "kind", ["good", "chunked", "gzip", "deflate", "rawdeflate", "redirect", "bilder mit ümlaut"]
)
def test_bytes_arrive_as_they_were(hostile_server: HostileServer, kind: str) -> None:
    assert fetcher().fetch(hostile_server.url(f"{kind}/2.jpg")) == jpeg_of(2)


@pytest.mark.parametrize("kind", ["notfound", "forbidden", "html", "noai", "endless", "loop"])
def test_what_cannot_pass_is_asked_for_once(hostile_server: HostileServer, kind: str) -> None:
    sleeps: list[float] = []
    cause_of(fetcher(retries=3, sleeps=sleeps), hostile_server.url(f"{kind}/3.jpg"))
    assert hostile_server.requests[f"{kind}/3.jpg"] == 1
    assert sleeps == []


def test_waits_grow_between_tries(hostile_server: HostileServer) -> None:
    sleeps: list[float] = []
    assert (
        cause_of(
            fetcher(retries=3, deadline_s=30, sleeps=sleeps), hostile_server.url("broken/4.jpg")
        )
        is Cause.SERVER_ERROR
    )
    assert hostile_server.requests["broken/4.jpg"] == 4
    assert all(0.5 <= wait / base <= 1.5 for wait, base in zip(sleeps, (0.5, 1, 2), strict=True))


def test_retry_after_is_kept_to_or_the_url_is_left(hostile_server: HostileServer) -> None:
    sleeps: list[float] = []
    patient = fetcher(retries=2, deadline_s=30, sleeps=sleeps)
    assert cause_of(patient, hostile_server.url("limitedlong/5.jpg")) is Cause.RATE_LIMITED
    assert hostile_server.requests["limitedlong/5.jpg"] == 1
    assert sleeps == []


@pytest.mark.parametrize("kind", ["drip", "dripheaders", "silent"])
def test_slow_answers_end_by_the_deadline(hostile_server: HostileServer, kind: str) -> None:
    started = time.monotonic()
    slow = fetcher(timeout_s=1, deadline_s=1, retries=5)
    assert cause_of(slow, hostile_server.url(f"{kind}/6.jpg")) is Cause.TIMEOUT
    assert 0.5 < time.monotonic() - started < 2
    assert hostile_server.requests[f"{kind}/6.jpg"] == 1


def test_the_server_sees_who_asks(hostile_server: HostileServer) -> None:
    fetcher(user_agent="Someone/2").fetch(hostile_server.url("good/7.jpg"))
    assert hostile_server.agents["Someone/2"] == 1


def test_reservations_can_be_switched_off(hostile_server: HostileServer) -> None:
    url = hostile_server.url("noai/8.jpg")
    assert fetcher(respect_opt_out=False).fetch(url) == jpeg_of(8)


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
    rebinding = Resolver(lambda host: [ip_address("127.0.0.1")])
    strict = fetcher(resolver=rebinding, allow_addresses=())
    url = f"http://pictures.example:{hostile_server.port}/good/9.jpg"
    assert cause_of(strict, url) is Cause.ADDRESS_REFUSED
    assert fetcher(resolver=rebinding).fetch(url) == jpeg_of(9)
    assert hostile_server.requests["good/9.jpg"] == 1


def test_the_next_address_is_tried(hostile_server: HostileServer) -> None:
    both = Resolver(lambda host: [ip_address("127.0.0.3"), ip_address("127.0.0.1")])
    url = f"http://pictures.example:{hostile_server.port}/good/10.jpg"
    assert fetcher(resolver=both, allow_addresses=("127.0.0.0/8",)).fetch(url) == jpeg_of(10)


def test_a_resolver_without_an_answer_is_not_waited_for() -> None:
    released = threading.Event()

    def stuck(host: str) -> list[Address]:
        released.wait(20)
        return []

    started = time.monotonic()
    try:
        found = cause_of(fetcher(resolver=Resolver(stuck)), "http://pictures.example/a.jpg")
    finally:
        released.set()
    assert found is Cause.DNS_TEMPORARY
    assert time.monotonic() - started < 1.5


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

    def fails(host: str) -> list[Address]:
        asked.append(host)
        raise error

    resolver = Resolver(fails)
    for _ in range(2):
        with pytest.raises(FetchError) as raised:
            resolver.resolve("pictures.example", 5)
        assert raised.value.cause is cause
    assert len(asked) == lookups


def test_a_host_is_looked_up_once_for_all_threads() -> None:
    asked: list[str] = []

    def slowly(host: str) -> list[Address]:
        asked.append(host)
        time.sleep(0.1)
        return [ip_address("8.8.8.8")]

    resolver = Resolver(slowly)
    threads = [threading.Thread(target=resolver.resolve, args=("a.example", 5)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == ["a.example"]


def test_the_system_resolver_reads_addresses_in_every_notation() -> None:
    assert system_lookup("2130706433") == [ip_address("127.0.0.1")]
    assert system_lookup("::1") == [ip_address("::1")]


def test_nobody_listening() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert cause_of(fetcher(), f"http://127.0.0.1:{port}/a.jpg") is Cause.CONNECTION


def test_an_answer_that_is_not_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        port = listening.getsockname()[1]
        assert cause_of(fetcher(), f"http://127.0.0.1:{port}/a.jpg") is Cause.HTTP_ERROR
        thread.join()


def test_a_proxy_in_the_environment_is_not_used(
    hostile_server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetcher().fetch(hostile_server.url("good/11.jpg")) == jpeg_of(11)


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
    context = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(fetch_module, "tls_context", lambda: context)
    assert fetcher().fetch(url) == jpeg_of(12)
    assert cause_of(fetcher(), f"https://127.0.0.1:{port}/b.jpg") is Cause.NOT_AN_IMAGE
    assert cause_of(fetcher(), f"http://127.0.0.1:{port}/a.jpg") is not None


def test_one_tls_context_serves_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    tls_context.cache_clear()
    made: list[object] = []
    real = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: made.append(1) or real())
    assert tls_context() is tls_context()
    assert tls_context().verify_mode == ssl.CERT_REQUIRED
    assert len(made) == 1


def test_a_python_without_certificate_authorities_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_certificates()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="SSL_CERT_FILE"):
        check_certificates()
