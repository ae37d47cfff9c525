"""Host names to addresses, within a time limit and once for many URLs of the same host.

`getaddrinfo` has no time limit of its own, so each lookup has a thread, and who waits for it gives
up when his time is over. Answers are kept for a while: a table asks for the same hosts over and
over, and an overloaded resolver is the most common cause of low success in such downloads.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import ip_address

from tools.download.addresses import Address, FetchError
from tools.download.causes import Cause

KEEP_S = 300.0
"""Seconds that an answer is kept, also the answer that a host does not exist; no answer is not."""
_MOST_KEPT = 50_000
_NO_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", -5), socket.EAI_FAIL}

Lookup = Callable[[str], list[Address]]


def system_lookup(host: str) -> list[Address]:
    """Ask the system's resolver for a host's addresses, in the order to try them."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found)
    return [ip_address(text) for text in texts]


class Resolver:
    """A cache of lookups, shared by the threads of a process."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, Future[_Answer]]] = {}

    def resolve(self, host: str, timeout_s: float) -> list[Address]:
        """The addresses of a host.

        Args:
            host: a name in ASCII, or an address.
            timeout_s: seconds to wait at most.

        Raises:
            FetchError: `dns_no_host` or `dns_temporary`.
        """
        try:
            answer = self._pending(host).result(timeout=max(0.0, timeout_s))
        except TimeoutError:
            raise FetchError(Cause.DNS_TEMPORARY, "no answer in time") from None
        if answer.failure is not None:
            raise FetchError(*answer.failure)
        return answer.addresses

    def _pending(self, host: str) -> Future[_Answer]:
        with self._lock:
            expiry, pending = self._kept.get(host, (0.0, None))
            if pending is not None and time.monotonic() < expiry:
                return pending
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            pending = Future[_Answer]()
            self._kept[host] = (time.monotonic() + KEEP_S, pending)
        lookup = threading.Thread(target=self._look_up, args=(host, pending), daemon=True)
        try:
            lookup.start()
        except RuntimeError:
            self._finish(host, pending, (Cause.DNS_TEMPORARY, "no thread to ask with"))
        return pending

    def _look_up(self, host: str, pending: Future[_Answer]) -> None:
        try:
            addresses = self._lookup(host)
        except socket.gaierror as error:
            if error.errno in _NO_HOST:
                failure = (Cause.DNS_NO_HOST, "the host does not exist")
            else:
                failure = (Cause.DNS_TEMPORARY, "the name server did not answer")
            self._finish(host, pending, failure)
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._finish(host, pending, (Cause.DNS_TEMPORARY, type(error).__name__))
        else:
            pending.set_result(_Answer(addresses=addresses))

    def _finish(self, host: str, pending: Future[_Answer], failure: tuple[Cause, str]) -> None:
        if failure[0].retryable:
            with self._lock:
                self._kept.pop(host, None)
        # Kept as data: an exception raised again and again would hold every caller's frame.
        pending.set_result(_Answer(addresses=[], failure=failure))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    addresses: list[Address]
    failure: tuple[Cause, str] | None = None
