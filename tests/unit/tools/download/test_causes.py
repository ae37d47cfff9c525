"""The closed list of causes, and what img2dataset's own messages are taken for."""

from __future__ import annotations

import pytest

from tools.download.causes import Cause, cause_of_http_status, classify, message


def test_success_has_no_cause() -> None:
    assert classify("success", None) is None


@pytest.mark.parametrize("cause", list(Cause))
def test_own_messages_are_read_back(cause: Cause) -> None:
    assert classify("failed_to_download", message(cause, "HTTP Error 404: timed out")) is cause


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("HTTP Error 404: Not Found", Cause.NOT_FOUND),
        ("HTTP Error 403: Forbidden", Cause.FORBIDDEN),
        ("HTTP Error 429: Too Many Requests", Cause.RATE_LIMITED),
        ("HTTP Error 503: Service Unavailable", Cause.SERVER_ERROR),
        ("HTTP Error 418: I'm a teapot", Cause.HTTP_ERROR),
        (
            "HTTP Error 302: The HTTP server returned a redirect error that would lead to an "
            "infinite loop.\nThe last 30x error message was:\nFound",
            Cause.REDIRECTS,
        ),
        ("timed out", Cause.TIMEOUT),
        ("<urlopen error timed out>", Cause.TIMEOUT),
        ("<urlopen error [Errno -2] Name or service not known>", Cause.DNS_NO_HOST),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", Cause.DNS_TEMPORARY),
        ("<urlopen error [Errno 111] Connection refused>", Cause.CONNECTION),
        ("[Errno 104] Connection reset by peer", Cause.CONNECTION),
        ("Remote end closed connection without response", Cause.CONNECTION),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify", Cause.TLS),
        ("IncompleteRead(100 bytes read, 900 more expected)", Cause.INCOMPLETE),
        ("Use of image disallowed by X-Robots-Tag directive", Cause.OPT_OUT),
        ("unknown url type: '//host/x'", Cause.BAD_URL),
        ("Image decoding error", Cause.DAMAGED_IMAGE),
        ("OpenCV(4.14.0) /io/opencv/x.cpp:59: error: (-2:Unspecified error)", Cause.DAMAGED_IMAGE),
        ("image too small", Cause.TOO_SMALL),
        ("image area too large", Cause.TOO_MANY_PIXELS),
        ("aspect ratio too large", Cause.ASPECT_RATIO),
        ("something new", Cause.UNKNOWN),
        (None, Cause.UNKNOWN),
    ],
)
def test_messages_of_img2dataset_are_understood(text: str | None, cause: Cause) -> None:
    assert classify("failed_to_download", text) is cause


def test_only_what_may_pass_is_retryable() -> None:
    assert {cause for cause in Cause if cause.retryable} == {
        Cause.RATE_LIMITED,
        Cause.SERVER_ERROR,
        Cause.DNS_TEMPORARY,
        Cause.TIMEOUT,
        Cause.CONNECTION,
        Cause.INCOMPLETE,
    }


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (404, "not_found"),
        (410, "not_found"),
        (451, "forbidden"),
        (408, "timeout"),
        (599, "server_error"),
        (999, "http_error"),
    ],
)
def test_http_statuses(status: int, cause: str) -> None:
    assert cause_of_http_status(status) == cause
