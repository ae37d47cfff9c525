"""Why a row of the table became no sample: a closed list, however many ways there are to say it.

The downloader writes `CAUSE: detail` as the `error_message` of a row. The detail names no URL,
port or time, so that counting equal messages stays possible.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Cause(StrEnum):
    """What kept a picture out of the shards."""

    NOT_FOUND = "not_found"
    """HTTP 404 or 410."""
    FORBIDDEN = "forbidden"
    """HTTP 401, 402, 403, 407 or 451."""
    HTTP_ERROR = "http_error"
    """Another 4xx, or a status that has no place here."""
    RATE_LIMITED = "rate_limited"
    """HTTP 429."""
    SERVER_ERROR = "server_error"
    """HTTP 5xx."""
    DNS_NO_HOST = "dns_no_host"
    """The name server says that the host does not exist."""
    DNS_TEMPORARY = "dns_temporary"
    """The name server gave no answer, or not in time."""
    TIMEOUT = "timeout"
    """No answer in time, or the whole fetch took longer than its deadline."""
    CONNECTION = "connection"
    """Refused, reset, closed early or unreachable."""
    TLS = "tls"
    """The handshake failed or the certificate is not valid."""
    REDIRECTS = "redirects"
    """Too many redirects, a loop of them, or one that names no target."""
    ADDRESS_REFUSED = "address_refused"
    """An address, scheme or port that the downloader does not go to."""
    BAD_URL = "bad_url"
    """Not a URL, and not repairable."""
    TOO_MANY_BYTES = "too_many_bytes"
    """The content is larger than the limit."""
    INCOMPLETE = "incomplete"
    """The content ended before the length that the server announced."""
    OPT_OUT = "opt_out"
    """The answer's headers forbid this use."""
    EMPTY = "empty"
    """0 bytes."""
    NOT_AN_IMAGE = "not_an_image"
    """HTML, XML, SVG, text or anything else that no picture begins with."""
    UNSUPPORTED_IMAGE = "unsupported_image"
    """A picture in a format, depth or encoding that is not read."""
    DAMAGED_IMAGE = "damaged_image"
    """It begins like a picture and cannot be decoded to its end."""
    TOO_SMALL = "too_small"
    """The short side has fewer pixels than asked for."""
    ASPECT_RATIO = "aspect_ratio"
    """Longer for its width than asked for."""
    TOO_MANY_PIXELS = "too_many_pixels"
    """More pixels than the limit, by its header; it was not decoded."""
    UNKNOWN = "unknown"
    """A message that fits nothing else."""

    @property
    def retryable(self) -> bool:
        """Whether asking again later has a chance."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        Cause.RATE_LIMITED,
        Cause.SERVER_ERROR,
        Cause.DNS_TEMPORARY,
        Cause.TIMEOUT,
        Cause.CONNECTION,
        Cause.INCOMPLETE,
    }
)

_BY_NAME = {cause.value: cause for cause in Cause}

_BY_HTTP_STATUS = {
    401: Cause.FORBIDDEN,
    402: Cause.FORBIDDEN,
    403: Cause.FORBIDDEN,
    404: Cause.NOT_FOUND,
    407: Cause.FORBIDDEN,
    408: Cause.TIMEOUT,
    410: Cause.NOT_FOUND,
    429: Cause.RATE_LIMITED,
    451: Cause.FORBIDDEN,
}

_HTTP_ERROR = re.compile(r"HTTP Error (\d{3})")

# What img2dataset 1.47 writes of its own; the first that is found decides.
_BY_TEXT = (
    ("X-Robots-Tag", Cause.OPT_OUT),
    ("image too small", Cause.TOO_SMALL),
    ("image area too large", Cause.TOO_MANY_PIXELS),
    ("aspect ratio too large", Cause.ASPECT_RATIO),
    ("Image decoding error", Cause.DAMAGED_IMAGE),
    ("OpenCV", Cause.DAMAGED_IMAGE),
    ("infinite loop", Cause.REDIRECTS),
    ("redirect", Cause.REDIRECTS),
    ("timed out", Cause.TIMEOUT),
    ("Name or service not known", Cause.DNS_NO_HOST),
    ("No address associated with hostname", Cause.DNS_NO_HOST),
    ("name resolution", Cause.DNS_TEMPORARY),
    ("IncompleteRead", Cause.INCOMPLETE),
    ("SSL", Cause.TLS),
    ("CERTIFICATE", Cause.TLS),
    ("Connection", Cause.CONNECTION),
    ("Remote end closed", Cause.CONNECTION),
    ("unreachable", Cause.CONNECTION),
    ("No route to host", Cause.CONNECTION),
    ("unknown url type", Cause.BAD_URL),
    ("no host given", Cause.BAD_URL),
    ("control characters", Cause.BAD_URL),
    ("codec can't encode", Cause.BAD_URL),
    ("nonnumeric port", Cause.BAD_URL),
)


def message(cause: Cause, detail: str) -> str:
    """The `error_message` of a row that failed.

    Args:
        cause: what kept it out.
        detail: a few words without URL, port or time.
    """
    return f"{cause.value}: {detail}"


def cause_of_http_status(status: int) -> Cause:
    """The cause that an HTTP status other than 2xx and 3xx stands for."""
    if status in _BY_HTTP_STATUS:
        return _BY_HTTP_STATUS[status]
    return Cause.SERVER_ERROR if 500 <= status <= 599 else Cause.HTTP_ERROR


def classify(status: str, error_message: str | None) -> Cause | None:
    """The cause of one row of img2dataset's result.

    Args:
        status: `success`, `failed_to_download` or `failed_to_resize`.
        error_message: what is written beside it; `CAUSE: detail` where Tessera's downloader wrote
            it, and img2dataset's own words are understood too.

    Returns:
        None for a success.
    """
    if status == "success":
        return None
    text = error_message or ""
    if written := _BY_NAME.get(text.partition(":")[0]):
        return written
    found = _HTTP_ERROR.search(text)
    if found and "infinite loop" not in text:
        return cause_of_http_status(int(found.group(1)))
    return next((cause for words, cause in _BY_TEXT if words in text), Cause.UNKNOWN)
