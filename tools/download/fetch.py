"""One URL to the bytes of a picture, whatever the server does.

Every wait is bounded: the resolver, the connection, the handshake, the headers, each read and the
whole of it, redirects included. So is every size. One TLS context serves the process; urllib makes
one for each https URL, which costs more than decoding the picture. Proxies named in the environment
are not used: behind one, the address that is connected to could not be checked.
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import io
import random
import socket
import ssl
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import cast

from tools.download.addresses import Address, FetchError, Target, follow, parse_url, reachable
from tools.download.causes import Cause, cause_of_http_status
from tools.download.image_header import ImageError, image_kind
from tools.download.opt_out import agent_token, opts_out
from tools.download.resolver import Resolver

MAX_REDIRECTS = 8
"""Redirects that one fetch follows."""
MAX_ADDRESSES = 4
"""Addresses of one host that are tried."""
READ_BYTES = 1 << 16
"""Bytes that one read asks for."""
BACKOFF_S = 0.5
"""Seconds before the first further try; each one after waits twice as long, times 0.5 to 1.5."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DECODERS: dict[str, int] = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_RAW_DEFLATE = -15


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits:
    """What one fetch may take, and whom it tells."""

    timeout_s: float
    """Seconds that one wait on the network may take."""
    deadline_s: float
    """Seconds that one try may take, redirects included."""
    max_bytes: int
    """Bytes of content at most, both as sent and unpacked."""
    retries: int
    """Further tries after a failure that may pass."""
    user_agent: str
    """What the downloader calls itself."""
    respect_opt_out: bool
    """Leave out what its server's headers reserve."""
    allow_addresses: tuple[str, ...] = ()
    """Networks (CIDR) that may be fetched from although they are not public."""


@cache
def tls_context() -> ssl.SSLContext:
    """The one TLS context of this process; certificates are verified."""
    return ssl.create_default_context()


def check_certificates() -> None:
    """Make sure that servers' certificates can be verified at all.

    Raises:
        ValueError: this Python knows no certificate authorities, so every https URL would fail.
    """
    paths = ssl.get_default_verify_paths()
    folder = Path(paths.capath) if paths.capath else None
    if paths.cafile is None and (folder is None or not any(folder.iterdir())):
        raise ValueError(
            "no certificate authorities were found, so no https URL can be fetched: install the "
            f"system's ca-certificates, or name a file of them in {paths.openssl_cafile_env}"
        )


class Deadline:
    """How much time one try has left."""

    def __init__(self, seconds: float, timeout_s: float) -> None:
        self._end = time.monotonic() + seconds
        self._timeout_s = timeout_s

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._end

    def wait_s(self, share: int = 1) -> float:
        """Seconds that the next wait may take.

        Args:
            share: how many waits the remaining time is for.

        Raises:
            FetchError: `timeout` when nothing is left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise FetchError(Cause.TIMEOUT, "the whole fetch took too long")
        return min(self._timeout_s, left / share)


class Fetcher:
    """Fetches URLs for many threads at a time."""

    def __init__(
        self,
        limits: FetchLimits,
        *,
        resolver: Resolver | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.limits = limits
        """What one fetch may take."""
        self._resolver = resolver or Resolver()
        self._sleep = sleep
        self._allowed = tuple(ip_network(network) for network in limits.allow_addresses)
        self._agent = agent_token(limits.user_agent)

    def fetch(self, url: str) -> bytes:
        """The content of a URL, after as many tries as are allowed and can help.

        Returns:
            The bytes of a file that begins like a picture, not checked further.

        Raises:
            FetchError: there is none; nothing else is raised for what a server does.
        """
        for attempt in range(self.limits.retries + 1):
            deadline = Deadline(self.limits.deadline_s, self.limits.timeout_s)
            try:
                return self._try_once(url, deadline)
            except FetchError as error:
                wait_s = BACKOFF_S * 2**attempt * random.uniform(0.5, 1.5)
                if error.retry_after_s is not None:
                    wait_s = max(error.retry_after_s, wait_s)
                # Who has used up a whole deadline is left to the second pass.
                is_last = attempt == self.limits.retries or deadline.is_over
                if is_last or not error.cause.retryable or wait_s > self.limits.deadline_s:
                    raise
            self._sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _try_once(self, url: str, deadline: Deadline) -> bytes:
        target = parse_url(url)
        seen: set[Target] = set()
        while target not in seen and len(seen) <= MAX_REDIRECTS:
            seen.add(target)
            answer = self._get(target, deadline)
            if isinstance(answer, bytes):
                return _checked(answer)
            target = answer
        raise FetchError(Cause.REDIRECTS, "a loop" if target in seen else "too many")

    def _get(self, target: Target, deadline: Deadline) -> bytes | Target:
        """The content, or where to go instead."""
        addresses = self._resolver.resolve(target.host, deadline.wait_s())
        addresses = reachable(target, addresses, self._allowed)
        try:
            with _connect(target, addresses[:MAX_ADDRESSES], deadline) as connection:
                return self._exchange(connection, target, deadline)
        except FetchError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _network_error(error) from None

    def _exchange(
        self, connection: socket.socket, target: Target, deadline: Deadline
    ) -> bytes | Target:
        lines = (
            f"GET {target.path} HTTP/1.1",
            f"Host: {target.host_header}",
            f"User-Agent: {self.limits.user_agent}",
            "Accept: image/webp,image/png,image/jpeg,image/*;q=0.8,*/*;q=0.5",
            "Accept-Encoding: identity",
            "Connection: close",
        )
        connection.settimeout(deadline.wait_s())
        connection.sendall("\r\n".join((*lines, "", "")).encode("ascii"))
        reader = cast("socket.socket", _TimedReader(connection, deadline))
        with http.client.HTTPResponse(reader, method="GET") as response:
            response.begin()
            if response.status in _REDIRECTS:
                location = response.getheader("Location")
                if not location:
                    raise FetchError(Cause.REDIRECTS, "no target")
                return follow(target, location)
            self._check_head(response)
            return self._read_body(response)

    def _check_head(self, response: http.client.HTTPResponse) -> None:
        if not 200 <= response.status <= 299:
            raise FetchError(
                cause_of_http_status(response.status),
                f"HTTP {response.status}",
                retry_after_s=_retry_after_s(response.getheader("Retry-After")),
            )
        if self.limits.respect_opt_out and opts_out(response.headers, self._agent):
            raise FetchError(Cause.OPT_OUT, "reserved by its server's headers")
        if response.length is not None and response.length > self.limits.max_bytes:
            raise FetchError(Cause.TOO_MANY_BYTES, "by its announced length")

    def _read_body(self, response: http.client.HTTPResponse) -> bytes:
        encoding = (response.getheader("Content-Encoding") or "").strip().lower()
        if encoding not in ("", "identity", *_DECODERS):
            raise FetchError(Cause.UNSUPPORTED_IMAGE, "an unknown content encoding")
        body = bytearray()
        while part := response.read1(READ_BYTES):
            body += part
            if len(body) > self.limits.max_bytes:
                raise FetchError(Cause.TOO_MANY_BYTES, "more than the limit")
        if response.length:
            raise FetchError(Cause.INCOMPLETE, "shorter than announced")
        if encoding not in _DECODERS or not body:
            return bytes(body)
        return _decoded(bytes(body), encoding, self.limits.max_bytes)


class _TimedReader(io.RawIOBase):
    """Gives http.client its reads, each with the time that is left; slow headers count too."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._connection = connection
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        """What http.client asks of a socket."""
        return io.BufferedReader(self, READ_BYTES)

    def readable(self) -> bool:
        """True, which BufferedReader asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read once."""
        self._connection.settimeout(self._deadline.wait_s())
        return self._connection.recv_into(buffer)


def _connect(target: Target, addresses: list[Address], deadline: Deadline) -> socket.socket:
    """A connection to the first address that answers, with TLS where the URL has it."""
    last: OSError | None = None
    for number, address in enumerate(addresses):
        wait_s = deadline.wait_s(share=len(addresses) - number)
        try:
            connection = socket.create_connection((str(address), target.port), wait_s)
        except OSError as error:
            last = error
            continue
        if target.scheme == "http":
            return connection
        try:
            connection.settimeout(deadline.wait_s())
            return tls_context().wrap_socket(connection, server_hostname=target.host)
        except BaseException:
            connection.close()
            raise
    raise last or OSError("no address")


_ERRNO_TEXTS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ECONNABORTED: "reset",
    errno.EPIPE: "reset",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "unreachable",
    errno.EMFILE: "too many open files on this machine",
    errno.ENFILE: "too many open files on this machine",
}

# The first that fits; several of these are subclasses of others further down.
_ERRORS: tuple[tuple[type[Exception], Cause, str], ...] = (
    (TimeoutError, Cause.TIMEOUT, "no answer in time"),
    (ssl.SSLCertVerificationError, Cause.TLS, "the certificate is not valid"),
    (ssl.SSLEOFError, Cause.CONNECTION, "closed by the server"),
    (ssl.SSLZeroReturnError, Cause.CONNECTION, "closed by the server"),
    (ssl.SSLError, Cause.TLS, "the handshake failed"),
    (http.client.RemoteDisconnected, Cause.CONNECTION, "closed without an answer"),
    (http.client.IncompleteRead, Cause.INCOMPLETE, "the last chunk is missing"),
    (http.client.HTTPException, Cause.HTTP_ERROR, "the answer is not HTTP"),
    (ValueError, Cause.HTTP_ERROR, "the answer is not HTTP"),
)


def _network_error(error: Exception) -> FetchError:
    for kind, cause, detail in _ERRORS:
        if isinstance(error, kind):
            return FetchError(cause, detail)
    number = error.errno if isinstance(error, OSError) else None
    return FetchError(Cause.CONNECTION, _ERRNO_TEXTS.get(number or 0, "failed"))


def _retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    return max(0.0, when.timestamp() - time.time())


def _decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo gzip or deflate; some servers mean the raw stream by `deflate`."""
    window = _DECODERS[encoding]
    if window == _DECODERS["deflate"] and (body[0] & 0x0F != 8 or int.from_bytes(body[:2]) % 31):
        window = _RAW_DEFLATE
    decoder = zlib.decompressobj(window)
    try:
        data = decoder.decompress(body, max_bytes + 1)
    except zlib.error:
        raise FetchError(Cause.DAMAGED_IMAGE, "the content encoding is damaged") from None
    if len(data) > max_bytes:
        raise FetchError(Cause.TOO_MANY_BYTES, "more than the limit when unpacked")
    if not decoder.eof:
        raise FetchError(Cause.INCOMPLETE, "the packed content is cut short")
    return data


def _checked(data: bytes) -> bytes:
    try:
        image_kind(data)
    except ImageError as error:
        raise FetchError(error.cause, error.detail) from None
    return data
