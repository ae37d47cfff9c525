"""Read one shard through and sort its samples into usable and rejected.

A rejected sample never ends the scan: it is recorded with a reason, a machine word to count by,
and one sentence a person can act on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.captions import caption_batch
from pipeline.image_check import checked_size
from pipeline.index import SAMPLE_SCHEMA, head_tail_crc32
from pipeline.rejection import Reason, RejectedSampleError, Rejection
from pipeline.tar_walk import MemberGroup, TarError, TarMember, group_members, walk_tar

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_BYTES = 256 * 1024**2
MAX_TEXT_BYTES = 16 * 1024**2
MAX_CAPTION_CHARACTERS = 65_536
_READ_BYTES = 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanOptions:
    """How samples are read and checked."""

    captions: str = "txt"
    """`txt`: the sample's .txt. `json:FIELD`: a string or a list of strings in its .json."""
    full_decode: bool = True
    """Decode every image. Otherwise only its header, and a JPEG's end marker, are checked."""

    def __post_init__(self) -> None:
        if self.captions != "txt" and not self.json_field:
            msg = f"captions must be 'txt' or 'json:FIELD', got {self.captions!r}"
            raise ValueError(msg)

    @property
    def json_field(self) -> str:
        """FIELD of `json:FIELD`; empty for `txt`."""
        kind, _, name = self.captions.partition(":")
        return name if kind == "json" else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardScan:
    """What one shard holds."""

    path: Path
    """Absolute and resolved."""
    size_bytes: int
    """Length of the file."""
    mtime_ns: int
    """Time of its last change, in nanoseconds since the epoch."""
    head_tail_crc32: int
    """CRC-32 over its first and its last 64 KiB."""
    problem: str
    """What is wrong with the tar as a whole, in one sentence; empty if nothing is."""
    samples: pa.RecordBatch
    """Usable samples in the order of the tar; `shard` is 0 throughout."""
    captions: pa.RecordBatch
    """Their texts; `sample` counts within this shard."""
    rejected: list[Rejection]
    """Samples that cannot be used."""
    num_empty_texts: int
    """Empty texts left out of samples that have others."""


@dataclass(slots=True)
class _Rows:
    """Rows of the usable samples while the shard is read."""

    samples: list[tuple[Any, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tokens: list[NDArray[np.uint16]] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    num_empty_texts: int = 0


def scan_shard(
    path: Path, options: ScanOptions, advance: Callable[[int], None] = lambda _: None
) -> ShardScan:
    """Read one shard through.

    Args:
        path: the tar, absolute and resolved.
        options: where captions are and how thoroughly images are checked.
        advance: called now and then with the number of bytes passed since its last call. What it
            raises ends the scan.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    rows = _Rows()
    rejected: list[Rejection] = []
    problem = "" if status.st_size else "it is empty (0 bytes)"
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of large pictures, both of which are dealt with here.
        warnings.simplefilter("ignore")
        if not problem:
            problem = _scan_groups(path, status.st_size, options, rows, rejected, advance)
    if not problem and not rows.samples and not rejected:
        problem = "it holds no samples"
    return ShardScan(
        path=path,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        head_tail_crc32=head_tail_crc32(path),
        problem=problem,
        samples=_sample_batch(rows.samples),
        captions=caption_batch(rows.texts, rows.tokens, rows.owners),
        rejected=rejected,
        num_empty_texts=rows.num_empty_texts,
    )


def _scan_groups(
    path: Path,
    size_bytes: int,
    options: ScanOptions,
    rows: _Rows,
    rejected: list[Rejection],
    advance: Callable[[int], None],
) -> str:
    """Fill `rows` and `rejected`; returns what is wrong with the tar, or nothing."""
    done_bytes = 0
    problem = ""
    with path.open("rb", buffering=_READ_BYTES) as file:
        groups = group_members(walk_tar(file, size_bytes))
        try:
            for group in groups:
                try:
                    _scan_group(file, group, options, rows)
                except RejectedSampleError as error:
                    rejected.append(
                        Rejection(group.key, str(path), error.member, error.reason, error.detail)
                    )
                ends = [member.offset + member.num_bytes for member in group.members.values()]
                position = max(ends, default=done_bytes)
                advance(position - done_bytes)
                done_bytes = position
        except TarError as error:
            problem = str(error)
    advance(size_bytes - done_bytes)
    return problem


def _scan_group(file: BinaryIO, group: MemberGroup, options: ScanOptions, rows: _Rows) -> None:
    if group.cut_member:
        detail = f"the tar ends inside {group.cut_member}"
        raise RejectedSampleError(Reason.TAR_CUT_SHORT, detail, group.cut_member)
    image = _image_member(group)
    texts, num_empty = _read_texts(file, group, options.json_field)
    label = _read_label(file, group)
    if image.num_bytes > MAX_IMAGE_BYTES:
        detail = f"{image.num_bytes} bytes exceed the limit of {MAX_IMAGE_BYTES}"
        raise RejectedSampleError(Reason.TOO_LARGE, detail, image.name)
    try:
        width, height = checked_size(_read(file, image), full_decode=options.full_decode)
    except RejectedSampleError as error:
        error.member = image.name
        raise
    owner = len(rows.samples)
    rows.samples.append((group.key, 0, image.offset, image.num_bytes, width, height, label))
    rows.num_empty_texts += num_empty
    for text, tokens in texts:
        rows.texts.append(text)
        rows.tokens.append(tokens)
        rows.owners.append(owner)


def _image_member(group: MemberGroup) -> TarMember:
    for suffix in IMAGE_SUFFIXES:
        if suffix in group.members:
            return group.members[suffix]
    others = ", ".join("." + suffix for suffix in sorted(group.members))
    raise _missing(group, Reason.MISSING_IMAGE, f"no .{', .'.join(IMAGE_SUFFIXES)} among {others}")


def _missing(group: MemberGroup, reason: Reason, detail: str) -> RejectedSampleError:
    """A member is not there; where the tar cannot be read on, that is the cause to name."""
    if group.cut_member is not None:
        return RejectedSampleError(Reason.TAR_CUT_SHORT, f"the tar cannot be read on: {detail}")
    return RejectedSampleError(reason, detail)


def _read_texts(
    file: BinaryIO, group: MemberGroup, json_field: str
) -> tuple[list[tuple[str, NDArray[np.uint16]]], int]:
    """Texts of a sample with their token ids, and how many empty ones were left out."""
    from pipeline.tokenizer import encode_captions

    suffix = "json" if json_field else "txt"
    member = group.members.get(suffix)
    if member is None:
        raise _missing(group, Reason.MISSING_CAPTION, f"the sample has no .{suffix}")
    if member.num_bytes > MAX_TEXT_BYTES:
        detail = f"{member.num_bytes} bytes exceed the limit of {MAX_TEXT_BYTES}"
        raise RejectedSampleError(Reason.CAPTION_TOO_LONG, detail, member.name)
    content = _decode(_read(file, member), member.name)
    texts = _json_texts(content, json_field, member.name) if json_field else [content]
    stripped = [_checked_text(text, member.name) for text in texts]
    # A caption such as "&nbsp;" has letters but no tokens.
    pairs = zip(stripped, encode_captions(stripped), strict=True)
    usable = [(text, tokens) for text, tokens in pairs if len(tokens)]
    if not usable:
        raise RejectedSampleError(Reason.EMPTY_CAPTION, "nothing but white space", member.name)
    return usable, len(texts) - len(usable)


def _decode(raw: bytes, member: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"not UTF-8: {error.reason} at byte {error.start}"
        raise RejectedSampleError(Reason.BAD_CAPTION_ENCODING, detail, member) from None


def _checked_text(text: str, member: str) -> str:
    if len(text) > MAX_CAPTION_CHARACTERS:
        detail = f"{len(text)} characters exceed the limit of {MAX_CAPTION_CHARACTERS}"
        raise RejectedSampleError(Reason.CAPTION_TOO_LONG, detail, member)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which no UTF-8 can hold.
        detail = "holds half of a surrogate pair"
        raise RejectedSampleError(Reason.BAD_CAPTION_ENCODING, detail, member) from None
    return text.strip()


def _json_texts(content: str, json_field: str, member: str) -> list[str]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RejectedSampleError(Reason.BAD_JSON, f"not JSON: {error}", member) from None
    value = document.get(json_field) if isinstance(document, dict) else None
    if value is None:
        raise RejectedSampleError(Reason.MISSING_CAPTION, f"no field {json_field!r}", member)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        detail = f"field {json_field!r} is neither a string nor a list of strings"
        raise RejectedSampleError(Reason.MISSING_CAPTION, detail, member)
    return texts


def _read_label(file: BinaryIO, group: MemberGroup) -> int:
    member = group.members.get("cls")
    if member is None:
        return -1
    content = _read(file, member)[:20].strip()
    if not content.isdigit() or int(content) >= 2**31:
        detail = f"{content.decode('ascii', 'backslashreplace')!r} is no class number"
        raise RejectedSampleError(Reason.BAD_LABEL, detail, member.name)
    return int(content)


def _read(file: BinaryIO, member: TarMember) -> bytes:
    file.seek(member.offset)
    return file.read(member.num_bytes)


def _sample_batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [()] * len(SAMPLE_SCHEMA)
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, SAMPLE_SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SAMPLE_SCHEMA)
