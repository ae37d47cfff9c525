"""Messages of failed rows are told apart by their cause."""

from __future__ import annotations

import pytest

from tessera.tools.download.causes import Cause, RefusedError, classify
from tessera.tools.download.headers import cause_of_status


def test_messages_are_read_back() -> None:
    assert classify("success", None) is None
    for cause in Cause:
        assert classify("failed_to_download", str(RefusedError(cause, "a: b"))) is cause
    for text in (None, "", "anything", "TIMEOUT: x"):
        assert classify("failed_to_resize", text) is Cause.UNKNOWN


def test_only_what_may_pass_is_retryable() -> None:
    names = {cause.value for cause in Cause if cause.retryable}
    assert names == {
        "rate_limited", "server_error", "dns_temporary", "timeout", "connection", "incomplete",
    }  # fmt: skip


@pytest.mark.parametrize(("status", "cause"), [
    (400, "http_error"), (401, "forbidden"), (403, "forbidden"), (404, "not_found"),
    (408, "timeout"), (410, "not_found"), (418, "http_error"), (429, "rate_limited"),
    (451, "forbidden"), (500, "server_error"), (503, "server_error"), (999, "http_error"),
])  # fmt: skip
def test_http_statuses(status: int, cause: str) -> None:
    assert cause_of_status(status) == cause
