"""One URL to the bytes of a picture, whatever the server does: aiohttp on one event-loop thread.

Every wait is bounded (resolver, connection, each read, and the whole of a try with its redirects),
and so is every size. The address is checked in the factory that opens the socket, so it is the very
address of the connection, after a redirect too. Proxies named in the environment are not used:
behind a proxy, the address that is fetched from could not be checked.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import ContentEncodingError
from yarl import URL

from tessera.tools.download.addresses import follow, may_connect, parse_url
from tessera.tools.download.causes import Cause, RefusedError
from tessera.tools.download.headers import agent_token, cause_of_status, opts_out, retry_after_s
from tessera.tools.download.job import FetchLimits
from tessera.tools.download.upright import image_kind

_MAX_REDIRECTS = 8
_BACKOFF_S = 0.5  # before the first further try; then twice as long each time, times 0.5 to 1.5
_KEEP_HOST_S = 300.0
_KEEP_CONNECTION_S = 2.0  # an idle one is an open file, and most hosts are not asked again
_MOST_HOSTS = 50_000
_MOST_HEADER_BYTES = 1 << 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
_NO_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", -5), socket.EAI_FAIL}

Lookup = Callable[[str], list[Any]]  # A host's addresses in the form of `socket.getaddrinfo`


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


def system_lookup(host: str) -> list[Any]:
    """Ask the system's resolver for a host's addresses, in the order to try them."""
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)


class Resolver(AbstractResolver):
    """Looks each host up once for all fetches, and never waits longer than it may.

    Answers are kept for five minutes, also that a host does not exist: tables ask for the same
    hosts over and over. `getaddrinfo` has no time limit, so each lookup has a thread of its own.
    """

    def __init__(self, timeout_s: float, lookup: Lookup, may: Callable[[str, int], bool]) -> None:
        self._timeout_s = timeout_s
        self._may = may
        self._lookup = lookup
        self._kept: dict[str, asyncio.Future[list[Any] | socket.gaierror]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host that may be connected to, or all where none may.

        Raises:
            socket.gaierror: there is no such host, or no answer in time.
        """
        if (answer := self._kept.get(host)) is None:
            if len(self._kept) >= _MOST_HOSTS:
                self._kept.clear()
            loop = asyncio.get_running_loop()
            answer = self._kept[host] = loop.create_future()
            loop.call_later(_KEEP_HOST_S, self._kept.pop, host, None)
            threading.Thread(target=self._ask, args=(host, answer), daemon=True).start()
        try:
            found = await asyncio.wait_for(asyncio.shield(answer), self._timeout_s)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from None
        if isinstance(found, socket.gaierror):
            if found.errno not in _NO_HOST:
                self._kept.pop(host, None)
            raise found.with_traceback(None)
        addresses = [(family, str(place[0]).partition("%")[0]) for family, *_, place in found]
        allowed = [each for each in addresses if self._may(each[1], port)] or addresses
        return [
            {"hostname": host, "host": address, "port": port, "family": family,
             "proto": 0, "flags": socket.AI_NUMERICHOST}
            for family, address in allowed
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing is open."""

    def _ask(self, host: str, answer: asyncio.Future[list[Any] | socket.gaierror]) -> None:
        try:
            found: list[Any] | socket.gaierror = self._lookup(host)
        except socket.gaierror as error:
            found = error
        except Exception as error:  # whatever it is, those who wait must hear of it
            found = socket.gaierror(socket.EAI_AGAIN, type(error).__name__)
        answer.get_loop().call_soon_threadsafe(answer.set_result, found)


class _AddressError(OSError):
    """An address or port that is not connected to."""


class Fetcher:
    """Fetches many URLs at a time, on a thread of its own."""

    def __init__(
        self,
        limits: FetchLimits,
        *,
        lookup: Lookup = system_lookup,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.limits = limits
        self._sleep = sleep
        self._lookup = lookup
        self._allowed = tuple(ip_network(network) for network in limits.allow_addresses)
        self._agent = agent_token(limits.user_agent)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(limits.threads)
        self._session: aiohttp.ClientSession | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def fetch(self, url: str) -> bytes:
        """The content of a URL, after as many tries as are allowed and can help.

        Returns:
            The bytes of a file that begins like a picture, not checked further.

        Raises:
            RefusedError: there is none; nothing else is raised for what a server does.
        """
        return asyncio.run_coroutine_threadsafe(self._fetch(url), self._loop).result()

    def start(self, url: str, done: Callable[[bytes | Exception], None]) -> None:
        """Fetch a URL while the caller does something else."""

        async def report() -> None:
            try:
                done(await self._fetch(url))
            except Exception as error:
                done(error)

        asyncio.run_coroutine_threadsafe(report(), self._loop)

    async def _fetch(self, url: str) -> bytes:
        target = parse_url(url)
        async with self._host_slot(target.host or ""), self._slots:
            for attempt in range(self.limits.retries + 1):
                began = time.monotonic()
                try:
                    async with asyncio.timeout(self.limits.deadline_s):
                        return await self._try_once(target)
                except TimeoutError:
                    error = RefusedError(Cause.TIMEOUT, "the whole fetch took too long")
                except RefusedError as refused:
                    error = refused
                wait_s = _BACKOFF_S * 2**attempt * random.uniform(0.5, 1.5)
                wait_s = max(error.retry_after_s, wait_s)
                # A host that used up a whole deadline is not retried here; retry_failed does that.
                is_over = time.monotonic() - began >= self.limits.deadline_s
                is_last = attempt == self.limits.retries or is_over
                if is_last or not error.cause.retryable or wait_s > self.limits.deadline_s:
                    raise error
                await self._sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _host_slot(self, host: str) -> asyncio.Semaphore:
        try:
            own = any(ip_address(host) in network for network in self._allowed)
        except ValueError:
            own = False
        most = self.limits.threads if own else self.limits.per_host
        return self._hosts.setdefault(host, asyncio.Semaphore(most))

    async def _try_once(self, target: URL) -> bytes:
        seen: set[URL] = set()
        while target not in seen and len(seen) <= _MAX_REDIRECTS:
            seen.add(target)
            try:
                answer = await self._get(target)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise _network_error(error) from None
            if isinstance(answer, bytes):
                image_kind(answer)
                return answer
            target = answer
        raise RefusedError(Cause.REDIRECTS, "a loop" if target in seen else "too many")

    async def _get(self, target: URL) -> bytes | URL:
        """The content, or where to go instead."""
        if self._session is None:
            self._session = self._open_session()
        async with self._session.get(target, allow_redirects=False) as answer:
            if answer.status in _REDIRECTS:
                location = answer.headers.get("Location")
                if not location:
                    raise RefusedError(Cause.REDIRECTS, "no target")
                return follow(target, location)
            self._check_head(answer)
            return await self._read_body(answer)

    def _open_session(self) -> aiohttp.ClientSession:
        wait_s = self.limits.timeout_s
        connector = aiohttp.TCPConnector(
            limit=0,
            ssl=tls_context(),
            resolver=Resolver(wait_s, self._lookup, self._may_connect),
            use_dns_cache=False,
            keepalive_timeout=_KEEP_CONNECTION_S,
            socket_factory=self._open_socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=wait_s, sock_read=wait_s),
            max_line_size=_MOST_HEADER_BYTES,
            max_field_size=_MOST_HEADER_BYTES,
            headers={
                "User-Agent": self.limits.user_agent,
                "Accept": "image/webp,image/png,image/jpeg,image/*;q=0.8,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )

    def _open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, place = info
        if not self._may_connect(place[0].partition("%")[0], place[1]):
            raise _AddressError("not a public address, or a port that is not the web's")
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)
        return opened

    def _may_connect(self, address: str, port: int) -> bool:
        return may_connect(ip_address(address), port, self._allowed)

    def _check_head(self, answer: aiohttp.ClientResponse) -> None:
        if not 200 <= answer.status <= 299:
            raise RefusedError(
                cause_of_status(answer.status),
                f"HTTP {answer.status}",
                retry_after_s=retry_after_s(answer.headers.get("Retry-After")),
            )
        if self.limits.respect_opt_out and opts_out(answer.headers, self._agent):
            raise RefusedError(Cause.OPT_OUT, "reserved by its server's headers")
        if (answer.content_length or 0) > self.limits.max_bytes:
            raise RefusedError(Cause.TOO_MANY_BYTES, "by its announced length")
        if answer.headers.get("Content-Encoding", "").strip().lower() not in _ENCODINGS:
            raise RefusedError(Cause.UNSUPPORTED_IMAGE, "an unknown content encoding")

    async def _read_body(self, answer: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for part in answer.content.iter_any():  # unpacked by aiohttp, in bounded parts
            body += part
            if len(body) > self.limits.max_bytes:
                raise RefusedError(Cause.TOO_MANY_BYTES, "more than the limit")
        return bytes(body)


_ERRNOS = {
    **dict.fromkeys((errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE), "reset"),
    **dict.fromkeys((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL), "unreachable"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "too many open files on this machine"),
    errno.ECONNREFUSED: "refused",
}
# The first that fits; several of these are subclasses of others further down.
_ERRORS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Cause, str], ...] = (
    (_AddressError, Cause.ADDRESS_REFUSED, "not a public address, or a port that is not the web's"),
    (TimeoutError, Cause.TIMEOUT, "no answer in time"),
    (ssl.CertificateError, Cause.TLS, "the certificate is not valid"),
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), Cause.CONNECTION, "closed by the server"),
    (ssl.SSLError, Cause.TLS, "the handshake failed"),
    (ConnectionError, Cause.CONNECTION, "reset"),
    (aiohttp.ServerDisconnectedError, Cause.CONNECTION, "closed without an answer"),
    (ContentEncodingError, Cause.DAMAGED_IMAGE, "the content encoding is damaged"),
    (aiohttp.ClientPayloadError, Cause.INCOMPLETE, "shorter than announced"),
    (aiohttp.InvalidURL, Cause.BAD_URL, "not a URL"),
    ((aiohttp.ClientResponseError, ValueError), Cause.HTTP_ERROR, "the answer is not HTTP"),
)


def _network_error(error: Exception) -> RefusedError:
    inner: Any = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    if inner is None and isinstance(error, aiohttp.ClientPayloadError):
        below = error.__cause__ or error.__context__
        inner = below if isinstance(below, ConnectionError | ContentEncodingError) else None
        inner = ConnectionResetError() if "ConnectionReset" in str(error) else inner
    inner = inner or error
    if isinstance(inner, socket.gaierror):
        if inner.errno in _NO_HOST:
            return RefusedError(Cause.DNS_NO_HOST, "the host does not exist")
        return RefusedError(Cause.DNS_TEMPORARY, "the name server did not answer")
    if isinstance(inner, aiohttp.ClientResponseError) and "Data after" in inner.message:
        return RefusedError(Cause.DAMAGED_IMAGE, "longer than announced")
    if isinstance(inner, OSError) and inner.errno in _ERRNOS:
        return RefusedError(Cause.CONNECTION, _ERRNOS[inner.errno])
    found = ((cause, text) for kind, cause, text in _ERRORS if isinstance(inner, kind))
    return RefusedError(*next(found, (Cause.CONNECTION, "failed")))
