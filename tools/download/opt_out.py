"""What a server's headers say about using its pictures for machine learning.

Read are X-Robots-Tag (noai, noimageai, noml, noindex, noimageindex, none), for everyone or for this
downloader by name, and TDM-Reservation, the header of the W3C group on text and data mining.
"""

from __future__ import annotations

import re
from email.message import Message

RESERVING = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
"""Directives that keep a picture out."""

# Directives whose own value follows a colon; before any other colon stands a robot's name.
_WITH_VALUE = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)


def agent_token(user_agent: str) -> str:
    """The name by which a header can address a downloader, in lower case.

    Args:
        user_agent: a whole User-Agent; the product after `compatible;`, else the first one.
    """
    found = re.search(r"compatible;\s*([\w-]+)", user_agent) or re.match(r"\s*([\w-]+)", user_agent)
    return found.group(1).lower() if found else ""


def opts_out(headers: Message, agent: str) -> bool:
    """Whether the headers of an answer reserve its content.

    Args:
        headers: of the answer.
        agent: the downloader's name from `agent_token`.
    """
    if (headers.get("TDM-Reservation") or "").strip() == "1":
        return True
    return any(_reserves(value, agent) for value in headers.get_all("X-Robots-Tag", []))


def _reserves(value: str, agent: str) -> bool:
    addressed = True
    for part in value.lower().split(","):
        name, colon, rest = part.partition(":")
        directive = part.strip()
        if colon and name.strip() not in _WITH_VALUE:
            addressed = name.strip() in ("*", agent)
            directive = rest.strip()
        if addressed and directive in RESERVING:
            return True
    return False
