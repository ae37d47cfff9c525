"""Where the downloader goes: URLs are repaired, and only public addresses are gone to.

A table of links is other people's input. Without a check it makes this machine fetch from its own
network: routers, cloud metadata, services on loopback. So the address is checked after the host's
name is resolved, on the very address that is then connected to, and again after every redirect.

What is refused: schemes other than http and https; ports other than 80, 81, 443 and 8000 to 8999;
addresses that are private, shared (CGNAT), loopback, link-local, multicast, reserved or
unspecified; the same written as IPv4-mapped IPv6 or behind the NAT64 prefix; 6to4 and Teredo; and
the public-looking address on which one cloud answers its own machines. An address in a network that
the user allows is exempt, with every port.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin

from tools.download.causes import Cause

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LONGEST_URL = 8192
"""Characters; servers refuse longer ones."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",
        "168.63.129.16/32",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
        "fec0::/10",
    )
)
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_BARE_HOST = re.compile(r"[\w-]+(\.[\w-]+)*\.[^\W\d]{2,}(:\d+)?/", re.ASCII)
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_PATH_SAFE = "/%:@!$&'()*+,;=~-._[]|\\"
_QUERY_SAFE = _PATH_SAFE + "?^`{}"
_DEFAULT_PORTS = {"http": 80, "https": 443}


class FetchError(Exception):
    """A URL that gives no picture."""

    def __init__(self, cause: Cause, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{cause.value}: {detail}")
        self.cause = cause
        """Which of the closed list of causes it is."""
        self.detail = detail
        """A few words without URL, port or time."""
        self.retry_after_s = retry_after_s
        """Seconds that the server asks to wait before another try."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A URL taken apart, in the letters that go over the wire."""

    scheme: str
    """http or https."""
    host: str
    """Name in ASCII, or an address without brackets."""
    port: int
    """1 to 65535."""
    path: str
    """Path and query."""

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The repaired URL."""
        return f"{self.scheme}://{self.host_header}{self.path}"


def parse_url(url: str) -> Target:
    """Take a URL apart and repair what can be repaired.

    Spaces and line ends around and inside, letters outside ASCII (percent-encoded, in a host IDNA),
    backslashes, `//host/x`, `host.tld/x` and fragments are put right. A user name and password are
    dropped: nothing here logs in.

    Raises:
        FetchError: `bad_url` where that is impossible, `address_refused` for another scheme.
    """
    text = re.sub(r"[\t\r\n]", "", url.strip("".join(map(chr, range(33))) + "\xa0\ufeff"))
    if not text or len(text) > LONGEST_URL:
        raise FetchError(Cause.BAD_URL, "too long" if text else "empty")
    if text.startswith(("//", "\\\\")):
        text = f"http:{text}"
    elif _BARE_HOST.match(text):
        text = f"http://{text}"
    scheme_text = _SCHEME.match(text)
    if scheme_text is None:
        raise FetchError(Cause.BAD_URL, "no scheme")
    scheme = scheme_text.group()[:-1].lower()
    if scheme not in _DEFAULT_PORTS:
        raise FetchError(Cause.ADDRESS_REFUSED, "a scheme other than http and https")
    place, _, query = text[scheme_text.end() :].partition("#")[0].partition("?")
    place = place.replace("\\", "/").lstrip("/")
    authority, slash, path = place.partition("/")
    host, port = _host_and_port(authority.rpartition("@")[2], _DEFAULT_PORTS[scheme])
    wire = quote(slash + path or "/", safe=_PATH_SAFE, errors="replace")
    if query:
        wire += "?" + quote(query, safe=_QUERY_SAFE, errors="replace")
    return Target(scheme=scheme, host=host, port=port, path=wire)


def follow(target: Target, location: str) -> Target:
    """The target of a redirect.

    Args:
        target: what was asked for.
        location: the Location header, relative or absolute.

    Raises:
        FetchError: as `parse_url`.
    """
    with suppress(UnicodeError):
        # Header bytes arrive as Latin-1, but what servers put there is UTF-8.
        location = location.encode("latin-1").decode("utf-8")
    location = location.strip()
    if _SCHEME.match(location):
        return parse_url(location)
    try:
        return parse_url(urljoin(target.url, location))
    except ValueError:
        raise FetchError(Cause.BAD_URL, "a redirect to no URL") from None


def _host_and_port(authority: str, default_port: int) -> tuple[str, int]:
    if authority.startswith("["):
        literal, bracket, rest = authority[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            raise FetchError(Cause.BAD_URL, "not an IPv6 address")
        try:
            host = str(ipaddress.IPv6Address(literal.partition("%")[0]))
        except ValueError:
            raise FetchError(Cause.BAD_URL, "not an IPv6 address") from None
        port_text = rest[1:]
    else:
        name, _, port_text = authority.partition(":")
        host = _ascii_host(name)
    if not port_text:
        return host, default_port
    digits = port_text.lstrip("0")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535):
        raise FetchError(Cause.BAD_URL, "not a port")
    return host, int(digits)


def _ascii_host(name: str) -> str:
    name = unicodedata.normalize("NFKC", unquote(name)).replace("\u3002", ".").lower()
    labels = [_ascii_label(label) for label in name.split(".")]
    host = ".".join(labels)
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise FetchError(Cause.BAD_URL, "not a host name" if host else "no host")
    return host


def _ascii_label(label: str) -> str:
    if label.isascii():
        return label
    try:
        return label.encode("idna").decode("ascii")
    except UnicodeError:
        # Letters newer than the codec's Unicode 3.2, emoji among them.
        return "xn--" + label.encode("punycode").decode("ascii")


def reachable(
    target: Target, addresses: Sequence[Address], allowed: Sequence[Network]
) -> list[Address]:
    """Those of a host's addresses that may be connected to, in their order.

    Args:
        target: what is asked for; its port counts.
        addresses: what the host's name was resolved to.
        allowed: networks that are exempt from the refusal.

    Raises:
        FetchError: `address_refused` when none is left.
    """
    web_port = target.port in (80, 81, 443) or 8000 <= target.port <= 8999
    left = [
        address
        for address in addresses
        if _is_in(address, allowed) or (web_port and is_public(address))
    ]
    if not left:
        public = any(is_public(address) for address in addresses)
        detail = "a port that is not the web's" if public else "not a public address"
        raise FetchError(Cause.ADDRESS_REFUSED, detail)
    return left


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    refused = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not refused and not _is_in(address, _REFUSED)
