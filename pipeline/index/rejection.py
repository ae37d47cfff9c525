"""Why a sample cannot be used, in a form to raise and in a form to keep."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why a sample is rejected."""

    TAR_CUT_SHORT = "tar_cut_short"
    DUPLICATE_KEY = "duplicate_key"
    MISSING_IMAGE = "missing_image"
    EMPTY_IMAGE = "empty_image"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_IMAGE = "unsupported_image"
    TRUNCATED_IMAGE = "truncated_image"
    DAMAGED_IMAGE = "damaged_image"
    TOO_LARGE = "too_large"
    MISSING_CAPTION = "missing_caption"
    EMPTY_CAPTION = "empty_caption"
    BAD_CAPTION_ENCODING = "bad_caption_encoding"
    BAD_JSON = "bad_json"
    CAPTION_TOO_LONG = "caption_too_long"
    BAD_LABEL = "bad_label"


class Rejection(NamedTuple):
    """A sample that cannot be used."""

    key: str
    """Key of the sample."""
    shard: str
    """Path of its shard."""
    member: str
    """Member of the tar that is at fault; empty if one is missing."""
    reason: str
    """A `Reason`."""
    detail: str
    """One sentence for a person."""


class RejectedSampleError(Exception):
    """Carries reason, detail and member of a rejection out of a check."""

    def __init__(self, reason: Reason, detail: str, member: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.member = member
