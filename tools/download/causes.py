"""Why a row of the table became no sample: a closed list, however many ways there are to say it.

The downloader writes `CAUSE: detail` as the `error_message` of a row. The detail names no URL,
port or time, so equal messages can be counted.
"""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """What kept a picture out of the shards."""

    NOT_FOUND = "not_found"  # HTTP 404 or 410
    FORBIDDEN = "forbidden"  # HTTP 401, 402, 403, 407 or 451
    HTTP_ERROR = "http_error"  # another 4xx, or an answer that is not HTTP
    RATE_LIMITED = "rate_limited"  # HTTP 429
    SERVER_ERROR = "server_error"  # HTTP 5xx
    DNS_NO_HOST = "dns_no_host"  # the name server says that the host does not exist
    DNS_TEMPORARY = "dns_temporary"  # the name server gave no answer, or not in time
    TIMEOUT = "timeout"  # no answer in time, or the whole fetch took longer than its deadline
    CONNECTION = "connection"  # refused, reset, closed early or unreachable
    TLS = "tls"  # the handshake failed or the certificate is not valid
    REDIRECTS = "redirects"  # too many redirects, a loop of them, or one without a target
    ADDRESS_REFUSED = "address_refused"  # an address, scheme or port that is not fetched from
    BAD_URL = "bad_url"  # not a URL, and not repairable
    TOO_MANY_BYTES = "too_many_bytes"  # the content is larger than the limit
    INCOMPLETE = "incomplete"  # the content ended before the length that the server announced
    OPT_OUT = "opt_out"  # the answer's headers forbid this use
    EMPTY = "empty"  # 0 bytes
    NOT_AN_IMAGE = "not_an_image"  # HTML, SVG, text or anything else that no picture begins with
    UNSUPPORTED_IMAGE = "unsupported_image"  # a format or depth that is not read; animated PNG
    DAMAGED_IMAGE = "damaged_image"  # begins like a picture and cannot be decoded to its end
    TOO_SMALL = "too_small"  # the short side has fewer pixels than asked for
    ASPECT_RATIO = "aspect_ratio"  # longer for its width than asked for
    TOO_MANY_PIXELS = "too_many_pixels"  # by its header; it was not decoded
    UNKNOWN = "unknown"  # a message that fits nothing else

    @property
    def retryable(self) -> bool:
        """Whether asking again later has a chance."""
        return self in RETRYABLE


RETRYABLE = frozenset(
    {Cause.RATE_LIMITED, Cause.SERVER_ERROR, Cause.DNS_TEMPORARY, Cause.TIMEOUT, Cause.CONNECTION}
    | {Cause.INCOMPLETE}
)
_NAMES = {cause.value: cause for cause in Cause}


class RefusedError(Exception):
    """A URL that gives no picture, or a picture that is not stored."""

    def __init__(self, cause: Cause, detail: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{cause.value}: {detail}")
        self.cause = cause
        self.retry_after_s = (
            retry_after_s  # seconds that the server asks to wait before another try
        )


def classify(status: str, error_message: str | None) -> Cause | None:
    """The cause of one row of a shard's metadata; None for a success."""
    if status == "success":
        return None
    return _NAMES.get((error_message or "").partition(":")[0], Cause.UNKNOWN)
