"""Where the downloader goes: URLs are repaired, and only public addresses are connected to.

A table of links is other people's input. Without a check it makes this machine fetch from its own
network: routers, cloud metadata, services on loopback. Refused are schemes other than http and
https; ports other than 80, 81, 443 and 8000 to 8999; and addresses that are private, shared
(CGNAT), loopback, link-local, multicast, reserved or unspecified, also in IPv4-mapped, NAT64, 6to4
and Teredo notation. An address in a network that the user allows is exempt, with every port.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import quote, unquote, urljoin, urlsplit

from yarl import URL

from tessera.tools.download.causes import Cause, RefusedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LONGEST_URL = 8192  # servers refuse longer ones
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("100.64.0.0/10", "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24"),
        *("::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10"),
    )
)
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_BARE_HOST = re.compile(r"[\w-]+(\.[\w-]+)*\.[^\W\d]{2,}(:\d+)?/", re.ASCII)
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_PATH_SAFE = "/%:@!$&'()*+,;=~-._[]|\\"
_QUERY_SAFE = _PATH_SAFE + "?^`{}"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AROUND = "".join(map(chr, range(33))) + "\xa0\ufeff"


def parse_url(url: str) -> URL:
    """Repair a URL where that is possible.

    Spaces and line ends around and inside, letters outside ASCII (percent-encoded, in a host IDNA),
    backslashes, `//host/x`, `host.tld/x` and fragments are put right. A user name and password are
    dropped: nothing here logs in.

    Raises:
        RefusedError: `bad_url` where it is no URL, `address_refused` for another scheme.
    """
    text = re.sub(r"[\t\r\n]", "", url.strip(_AROUND))
    if not text or len(text) > _LONGEST_URL:
        raise RefusedError(Cause.BAD_URL, "too long" if text else "empty")
    if text.startswith(("//", "\\\\")):
        text = f"http:{text}"
    elif _BARE_HOST.match(text):
        text = f"http://{text}"
    found = _SCHEME.match(text)
    if found is None:
        raise RefusedError(Cause.BAD_URL, "no scheme")
    if (scheme := found.group()[:-1].lower()) not in _DEFAULT_PORTS:
        raise RefusedError(Cause.ADDRESS_REFUSED, "a scheme other than http and https")
    rest, _, query = text[found.end() :].partition("#")[0].partition("?")
    place = rest.replace("\\", "/").lstrip("/")
    try:
        parts = urlsplit(f"//{place}")
        host, port = _ascii_host(parts.hostname or ""), parts.port
        if port == 0:
            raise ValueError(port)  # noqa: TRY301
    except ValueError:
        raise RefusedError(Cause.BAD_URL, "not a host name, or not a port") from None
    wire = quote(parts.path or "/", safe=_PATH_SAFE, errors="replace")
    if query:
        wire += "?" + quote(query, safe=_QUERY_SAFE, errors="replace")
    shown = f":{port}" if port not in (None, _DEFAULT_PORTS[scheme]) else ""
    return URL(f"{scheme}://{host}{shown}{wire}", encoded=True)


def follow(url: URL, location: str) -> URL:
    """The target of a redirect.

    Raises:
        RefusedError: as `parse_url`.
    """
    location = location.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
    try:
        return parse_url(location if _SCHEME.match(location) else urljoin(str(url), location))
    except ValueError:
        raise RefusedError(Cause.BAD_URL, "a redirect to no URL") from None


def _ascii_host(name: str) -> str:
    """A host as it goes over the wire; ValueError where it is none."""
    if ":" in name:
        return f"[{ipaddress.IPv6Address(name.partition('%')[0])}]"
    name = unicodedata.normalize("NFKC", unquote(name)).replace("\u3002", ".").lower()
    # Letters newer than the codec's Unicode 3.2, emoji among them, have no IDNA there.
    labels = [
        each if each.isascii() else f"xn--{each.encode('punycode').decode()}"
        for each in name.split(".")
    ]
    host = ".".join(labels)
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ValueError(host)
    with suppress(OSError):  # 2130706433 and 0x7f.1 are addresses too
        return socket.inet_ntoa(socket.inet_aton(host))
    return host


def may_connect(address: Address, port: int, allowed: Sequence[Network]) -> bool:
    """Whether an address and port may be connected to."""
    web_port = port in (80, 81, 443) or 8000 <= port <= 8999
    return _is_in(address, allowed) or (web_port and is_public(address))


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
