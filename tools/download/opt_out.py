"""What a server's headers say about using its pictures for machine learning."""

from __future__ import annotations

import re
from typing import Any

_RESERVING = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
# Directives whose own value follows a colon; before any other colon stands a robot's name.
_WITH_VALUE = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}


def agent_token(user_agent: str) -> str:
    """The name by which a header can address a downloader, in lower case."""
    found = re.search(r"compatible;\s*([\w-]+)", user_agent) or re.match(r"\s*([\w-]+)", user_agent)
    return found.group(1).lower() if found else ""


def opts_out(headers: Any, agent: str) -> bool:
    """Whether the headers of an answer reserve its content (X-Robots-Tag, TDM-Reservation)."""
    names = {"x-robots-tag": [], "tdm-reservation": []}
    for name, value in headers.items():
        names.get(name.lower(), []).append(value)
    if "1" in (value.strip() for value in names["tdm-reservation"]):
        return True
    return any(_reserves(value, agent) for value in names["x-robots-tag"])


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
