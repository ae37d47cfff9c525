"""The hostile web server, one for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile_pictures import pixel_bomb
from tests.hostile_server import HostileServer, _gzip_bomb


@pytest.fixture(scope="session")
def hostile_server() -> Iterator[HostileServer]:
    """A server with every fault; request counts add up over the tests, so use own numbers."""
    pixel_bomb(), _gzip_bomb()  # made at the first request, which takes seconds
    with HostileServer() as server:
        yield server
