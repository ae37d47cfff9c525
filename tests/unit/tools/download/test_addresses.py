"""URL repair, and which addresses are refused."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from tessera.tools.download.addresses import follow, is_public, may_connect, parse_url
from tessera.tools.download.causes import Cause, RefusedError


@pytest.mark.parametrize(
    ("url", "repaired"),
    [
        ("http://example.com", "http://example.com/"),
        ("HTTP://Example.COM:80/A", "http://example.com/A"),
        ("https://example.com:443/a?b=c&d=%20", "https://example.com/a?b=c&d=%20"),
        ("https://example.com:8443/a", "https://example.com:8443/a"),
        (" http://example.com/a b.jpg\r\n", "http://example.com/a%20b.jpg"),
        ("http://example.com/a\n\tb.jpg", "http://example.com/ab.jpg"),
        ("http://example.com/ü/日本.jpg", "http://example.com/%C3%BC/%E6%97%A5%E6%9C%AC.jpg"),
        ("http://example.com/%C3%BC%zz.jpg", "http://example.com/%C3%BC%zz.jpg"),
        ("http://münchen.de/a", "http://xn--mnchen-3ya.de/a"),
        ("http://\U0001f600.example/a", "http://xn--e28h.example/a"),
        ("//example.com/a", "http://example.com/a"),
        ("www.example.com/a.jpg", "http://www.example.com/a.jpg"),
        ("http:\\\\example.com\\a", "http://example.com/a"),
        ("http:/example.com/a", "http://example.com/a"),
        ("http://example.com/a#part?x", "http://example.com/a"),
        ("http://user:secret@example.com/a", "http://example.com/a"),
        ("http://example.com?a=ü", "http://example.com/?a=%C3%BC"),
        ("http://[2606:4700::0001]:8080/a", "http://[2606:4700::1]:8080/a"),
        ("http://under_score.example/a", "http://under_score.example/a"),
    ],
)
def test_urls_are_repaired(url: str, repaired: str) -> None:
    assert parse_url(url) == URL(repaired, encoded=True)


@given(st.text(max_size=200) | st.text(max_size=100).map(lambda text: f"http://{text}"))
def test_any_text_is_a_plain_url_or_refused(text: str) -> None:
    try:
        parse_url(text)
    except RefusedError as error:
        refusal = error.cause
    else:
        refusal = None
    if refusal is not None:
        assert refusal in (Cause.BAD_URL, Cause.ADDRESS_REFUSED)
        return
    target = parse_url(text)
    assert str(target).isascii()
    assert str(target).isprintable()
    assert " " not in str(target)
    assert parse_url(str(target)) == target


@pytest.mark.parametrize(("url", "cause"), [
    *((url, Cause.BAD_URL) for url in ("", "   ", "a", "http://", "http:///", "http://a..b/",
      "http://a:0/", "http://a:b/", "http://[::1", "http://[zz]/", f"http://{'a' * 64}.example/",
      "http://a/" + "b" * 9000, "http://example.com:00000008012345/a",
      f"http://example.com:000000080{'1' * 5000}/a")),
    *((url, Cause.ADDRESS_REFUSED) for url in ("file:///etc/passwd", "data:image/gif;base64,R0",
      "ftp://a/b", "gopher://a/b", "javascript:alert(1)")),
])  # fmt: skip
def test_what_is_no_url_and_other_schemes_are_refused(url: str, cause: Cause) -> None:
    with pytest.raises(RefusedError) as raised:
        parse_url(url)
    assert raised.value.cause is cause


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b?c", "https://example.com/b?c"),
        ("b.jpg", "https://example.com/x/b.jpg"),
        ("//other.example/b", "https://other.example/b"),
        ("http://other.example:8080/b", "http://other.example:8080/b"),
        ("/\u00fc.jpg", "https://example.com/%C3%BC.jpg"),
    ],
)
def test_redirects_are_followed_relative_to_their_url(location: str, url: str) -> None:
    assert follow(parse_url("https://example.com/x/a.jpg"), location) == URL(url, encoded=True)


@pytest.mark.parametrize("address", [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "169.254.169.254",
    "172.16.0.1", "192.0.0.192", "192.168.1.1", "192.88.99.1", "198.18.0.1", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "168.63.129.16", "::", "::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1", "2001::1", "2002:7f00:1::", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1",
    "ff02::1", "2001:db8::1",
])  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "151.101.1.140", "2606:4700::1111",
    "::ffff:8.8.8.8", "64:ff9b::808:808"])  # fmt: skip
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(("port", "allowed"), [(80, True), (443, True), (8080, True), (8888, True),
    (22, False), (25, False), (6379, False), (9000, False)])  # fmt: skip
def test_ports(port: int, allowed: bool) -> None:
    assert may_connect(ip_address("8.8.8.8"), port, ()) is allowed


def test_an_allowed_network_is_exempt_with_every_port_and_no_further() -> None:
    allowed = (ip_network("127.0.0.1/32"),)
    assert may_connect(ip_address("127.0.0.1"), 5, allowed)
    for other in ("127.0.0.2", "::1", "::ffff:127.0.0.1", "10.0.0.1"):
        assert not may_connect(ip_address(other), 80, allowed)
