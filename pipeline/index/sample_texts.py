"""The picture, texts, json and label of one sample, read from its members and checked."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from tessera.pipeline.index.cells import too_long
from tessera.pipeline.index.clues import texts_at
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.rejection import Reason, RejectedSampleError
from tessera.pipeline.index.tar_walk import MemberGroup, TarMember

MAX_TEXT_BYTES = 16 * 1024**2
_MOST_NAMED = 10
"""Suffixes or fields that a message lists."""


def _missing(group: MemberGroup, reason: Reason, detail: str) -> RejectedSampleError:
    """A member is not there; where the tar cannot be read on, that is the cause to name."""
    if group.cut_member is not None:
        return RejectedSampleError(Reason.TAR_CUT_SHORT, f"the tar cannot be read on: {detail}")
    return RejectedSampleError(reason, detail)


def image_member(group: MemberGroup, options: ScanOptions) -> TarMember:
    """The member that holds the picture of a sample."""
    for suffix in options.image_suffixes:
        if suffix in group.members:
            return group.members[suffix]
    names = sorted(group.members)
    others = ", ".join(f".{suffix}" for suffix in names[:_MOST_NAMED])
    if len(names) > _MOST_NAMED:
        others += f" and {len(names) - _MOST_NAMED} more"
    wanted = ", .".join(options.image_suffixes)
    raise _missing(group, Reason.MISSING_IMAGE, f"no .{wanted} among {others}")


def read_json(file: BinaryIO, group: MemberGroup, options: ScanOptions) -> dict[str, Any]:
    """The sample's json if anything in it is wanted; empty if it is none and no caption is there.

    A sample with captions elsewhere is not lost because of its metadata.
    """
    member = group.members.get(options.json_suffix)
    if member is None or not (options.json_field or options.fields):
        return {}
    try:
        content = _decode(_read_text_bytes(file, member), member.name)
        return _parse_json(content, member.name)
    except RejectedSampleError:
        if options.json_field:
            raise
        return {}


def read_texts(
    file: BinaryIO, group: MemberGroup, options: ScanOptions, document: dict[str, Any]
) -> tuple[str, list[str]]:
    """The member that holds the texts of a sample, and the texts, checked but not tokenised."""
    suffix = options.text_suffix
    reason = Reason.BAD_LABEL if options.captions == "class" else Reason.MISSING_CAPTION
    member = group.members.get(suffix)
    if member is None:
        raise _missing(group, reason, f"the sample has no .{suffix}")
    if options.json_field:
        texts = _json_texts(document, options.json_field, member.name)
    else:
        texts = [_decode(_read_text_bytes(file, member), member.name)]
        if options.captions == "lines":
            texts = [line for line in texts[0].split("\n") if line.strip()] or texts
    return member.name, [_checked_text(text, member.name) for text in texts]


def _read_text_bytes(file: BinaryIO, member: TarMember) -> bytes:
    if member.num_bytes > MAX_TEXT_BYTES:
        detail = f"{member.num_bytes} bytes exceed the limit of {MAX_TEXT_BYTES}"
        raise RejectedSampleError(Reason.CAPTION_TOO_LONG, detail, member.name)
    return read_member(file, member)


def _decode(raw: bytes, member: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"not UTF-8: {error.reason} at byte {error.start}"
        raise RejectedSampleError(Reason.BAD_CAPTION_ENCODING, detail, member) from None


def _checked_text(text: str, member: str) -> str:
    if (detail := too_long(text)) is not None:
        raise RejectedSampleError(Reason.CAPTION_TOO_LONG, detail, member)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which no UTF-8 can hold.
        detail = "holds half of a surrogate pair"
        raise RejectedSampleError(Reason.BAD_CAPTION_ENCODING, detail, member) from None
    return text.strip()


def _parse_json(content: str, member: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RejectedSampleError(Reason.BAD_JSON, f"not JSON: {error}", member) from None
    if not isinstance(document, dict):
        raise RejectedSampleError(Reason.MISSING_CAPTION, "not a JSON object", member)
    return document


def _json_texts(document: dict[str, Any], json_field: str, member: str) -> list[str]:
    value = texts_at(document, json_field)
    if value is None:
        names = ", ".join(sorted(document)[:_MOST_NAMED]) or "none"
        detail = f"no field {json_field!r}; it has: {names}"
        raise RejectedSampleError(Reason.MISSING_CAPTION, detail, member)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        detail = f"field {json_field!r} is neither a string nor a list of strings"
        raise RejectedSampleError(Reason.MISSING_CAPTION, detail, member)
    return texts


def read_label(file: BinaryIO, group: MemberGroup) -> int:
    """The number in the sample's .cls; -1 where there is none."""
    member = group.members.get("cls")
    if member is None:
        return -1
    content = read_member(file, member)[:20].strip()
    if not content.isdigit() or int(content) >= 2**31:
        detail = f"{content.decode('ascii', 'backslashreplace')!r} is no class number"
        raise RejectedSampleError(Reason.BAD_LABEL, detail, member.name)
    return int(content)


def read_member(file: BinaryIO, member: TarMember) -> bytes:
    """The content of a member."""
    file.seek(member.offset)
    return file.read(member.num_bytes)
