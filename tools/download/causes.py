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
    HTTP_ERROR = "http_error"  # Another 4xx, or an answer that is not HTTP
    RATE_LIMITED = "rate_limited"  # HTTP 429
    SERVER_ERROR = "server_error"  # HTTP 5xx
    DNS_NO_HOST = "dns_no_host"  # The name server says that the host does not exist
    DNS_TEMPORARY = "dns_temporary"  # The name server gave no answer, or not in time
    TIMEOUT = "timeout"  # No answer in time, or the whole fetch took longer than its deadline
    CONNECTION = "connection"  # Refused, reset, closed early or unreachable
    TLS = "tls"  # The handshake failed or the certificate is not valid
    REDIRECTS = "redirects"  # Too many redirects, a loop of them, or one that names no target
    ADDRESS_REFUSED = "address_refused"
    """An address, scheme or port that the downloader does not go to."""
    BAD_URL = "bad_url"  # Not a URL, and not repairable
    TOO_MANY_BYTES = "too_many_bytes"  # The content is larger than the limit
    INCOMPLETE = "incomplete"  # The content ended before the length that the server announced
    OPT_OUT = "opt_out"  # The answer's headers forbid this use
    EMPTY = "empty"  # 0 bytes
    NOT_AN_IMAGE = "not_an_image"
    """HTML, XML, SVG, text or anything else that no picture begins with."""
    UNSUPPORTED_IMAGE = "unsupported_image"
    """A picture in a format, depth or encoding that is not read, or an animated PNG."""
    DAMAGED_IMAGE = "damaged_image"  # It begins like a picture and cannot be decoded to its end
    TOO_SMALL = "too_small"  # The short side has fewer pixels than asked for
    ASPECT_RATIO = "aspect_ratio"  # Longer for its width than asked for
    TOO_MANY_PIXELS = "too_many_pixels"
    """More pixels than the limit, by its header; it was not decoded."""
    UNKNOWN = "unknown"  # A message that fits nothing else

    @property
    def retryable(self) -> bool:
        """Whether asking again later has a chance."""
        return self in RETRYABLE


RETRYABLE = frozenset(
    {Cause.RATE_LIMITED, Cause.SERVER_ERROR, Cause.DNS_TEMPORARY, Cause.TIMEOUT, Cause.CONNECTION}
    | {Cause.INCOMPLETE}
)
_BY_NAME = {cause.value: cause for cause in Cause}
_BY_HTTP_STATUS = {
    **dict.fromkeys((401, 402, 403, 407, 451), Cause.FORBIDDEN),
    **dict.fromkeys((404, 410), Cause.NOT_FOUND),
    408: Cause.TIMEOUT,
    429: Cause.RATE_LIMITED,
}


class RefusedError(Exception):
    """A URL that gives no picture, or a picture that is not stored."""

    def __init__(self, cause: Cause, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{cause.value}: {detail}")
        self.cause = cause  # Which of the closed list of causes it is
        self.retry_after_s = retry_after_s
        """Seconds that the server asks to wait before another try."""


def cause_of_http_status(status: int) -> Cause:
    """The cause that an HTTP status other than 2xx and 3xx stands for."""
    if status in _BY_HTTP_STATUS:
        return _BY_HTTP_STATUS[status]
    return Cause.SERVER_ERROR if 500 <= status <= 599 else Cause.HTTP_ERROR


def classify(status: str, error_message: str | None) -> Cause | None:
    """The cause of one row of a shard's metadata; None for a success."""
    if status == "success":
        return None
    return _BY_NAME.get((error_message or "").partition(":")[0], Cause.UNKNOWN)
