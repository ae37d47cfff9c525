"""What the head of a server's answer says: its status, when to ask again, how it may be used."""

from __future__ import annotations

import email.utils
import re
import time
from typing import Any

from tessera.tools.download.causes import Cause

_BY_STATUS = {
    **dict.fromkeys((401, 402, 403, 407, 451), Cause.FORBIDDEN),
    **dict.fromkeys((404, 410), Cause.NOT_FOUND),
    408: Cause.TIMEOUT,
    429: Cause.RATE_LIMITED,
}
_RESERVING = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
# Directives whose own value follows a colon; before any other colon stands a robot's name.
_WITH_VALUE = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}


def cause_of_status(status: int) -> Cause:
    """The cause that an HTTP status other than 2xx and 3xx stands for."""
    other = Cause.SERVER_ERROR if 500 <= status <= 599 else Cause.HTTP_ERROR
    return _BY_STATUS.get(status, other)


def retry_after_s(value: str | None) -> float:
    """Seconds that a Retry-After header asks for by a number or a date, or 0."""
    if not value or value.strip().isdecimal():
        return float(value or 0)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def agent_token(user_agent: str) -> str:
    """The name by which a header can address a downloader, in lower case."""
    found = re.search(r"compatible;\s*([\w-]+)", user_agent) or re.match(r"\s*([\w-]+)", user_agent)
    return found.group(1).lower() if found else ""


def opts_out(headers: Any, agent: str) -> bool:
    """Whether the headers of an answer reserve its content (X-Robots-Tag, TDM-Reservation)."""
    pairs = [(name.lower(), value) for name, value in headers.items()]
    return any(
        (name == "tdm-reservation" and value.strip() == "1")
        or (name == "x-robots-tag" and _reserves(value, agent))
        for name, value in pairs
    )


def _reserves(value: str, agent: str) -> bool:
    addressed = True
    for part in value.lower().split(","):
        name, colon, rest = part.partition(":")
        directive = part.strip()
        if colon and name.strip() not in _WITH_VALUE:
            addressed = name.strip() in ("*", agent)
            directive = rest.strip()
        if addressed and directive in _RESERVING:
            return True
    return False
