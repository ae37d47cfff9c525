"""Read one shard through and sort its samples into usable and rejected.

A rejected sample never ends the scan: it is recorded with a reason, a machine word to count by,
and one sentence a person can act on.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.captions import caption_batch
from pipeline.index import SAMPLE_SCHEMA, ShardRecord
from pipeline.indexing.image_check import check_image
from pipeline.indexing.options import ScanOptions
from pipeline.indexing.rejection import Reason, RejectedSampleError, Rejection
from pipeline.indexing.sample_columns import field_values, parquet_fields
from pipeline.indexing.tar_walk import MemberGroup, TarError, TarMember, group_members, walk_tar
from pipeline.storage import file_state, head_tail_crc32, open_binary

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAX_TEXT_BYTES = 16 * 1024**2
MAX_CAPTION_CHARACTERS = 65_536
_TEXTS_AT_ONCE = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardScan:
    """What one shard holds."""

    record: ShardRecord
    """The file, and how many usable samples are in it."""
    problem: str
    """What is wrong with the tar as a whole, in one sentence; empty if nothing is."""
    samples: pa.RecordBatch
    """Usable samples in the order of the tar; `shard` is 0 throughout."""
    captions: pa.RecordBatch
    """Their texts; `sample` counts within this shard."""
    columns: pa.RecordBatch
    """Their optional columns."""
    rejected: list[Rejection]
    """Samples that cannot be used, in the order of the tar."""
    num_empty_texts: int
    """Empty texts left out of samples that have others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A sample with a sound image, whose texts are not tokenised yet."""

    place: int
    """How many samples come before it in the tar, usable or not."""
    key: str
    member: str
    row: tuple[Any, ...]
    values: tuple[Any, ...]
    texts: list[str]


@dataclass(kw_only=True, slots=True)
class _Scan:
    """What is known of a shard while it is read."""

    location: str
    options: ScanOptions
    parquet: dict[str, dict[str, Any]]
    candidates: list[_Candidate] = field(default_factory=list)
    num_waiting_texts: int = 0
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    values: list[tuple[Any, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tokens: list[NDArray[np.uint16]] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    rejected: list[tuple[int, Rejection]] = field(default_factory=list)
    num_groups: int = 0
    num_empty_texts: int = 0

    def reject(self, place: int, key: str, error: RejectedSampleError) -> None:
        rejection = Rejection(key, self.location, error.member, error.reason, error.detail)
        self.rejected.append((place, rejection))

    def add(self, candidate: _Candidate) -> None:
        """Texts wait for company: a batch is tokenised several times faster than one by one."""
        self.candidates.append(candidate)
        self.num_waiting_texts += len(candidate.texts)
        if self.num_waiting_texts >= _TEXTS_AT_ONCE:
            self.tokenise()

    def tokenise(self) -> None:
        """Turn the waiting samples into rows; those without a token are rejected."""
        from pipeline.tokenizer import encode_captions

        encoded = iter(encode_captions([t for each in self.candidates for t in each.texts]))
        for each in self.candidates:
            # A caption such as "&nbsp;" has letters but no tokens.
            pairs = [(text, ids) for text in each.texts if len(ids := next(encoded))]
            if not pairs:
                detail = "nothing but white space"
                error = RejectedSampleError(Reason.EMPTY_CAPTION, detail, each.member)
                self.reject(each.place, each.key, error)
                continue
            self.num_empty_texts += len(each.texts) - len(pairs)
            self.owners += [len(self.rows)] * len(pairs)
            self.texts += [text for text, _ in pairs]
            self.tokens += [ids for _, ids in pairs]
            self.rows.append(each.row)
            self.values.append(each.values)
        self.candidates.clear()
        self.num_waiting_texts = 0


def scan_shard(
    location: str, options: ScanOptions, advance: Callable[[int], None] = lambda _: None
) -> ShardScan:
    """Read one shard through.

    Args:
        location: absolute path or URL of the tar.
        options: what is read and how thoroughly it is checked.
        advance: called now and then with the number of bytes passed since its last call. What it
            raises ends the scan.

    Raises:
        OSError: the file cannot be read.
    """
    state = file_state(location)
    scan = _Scan(location=location, options=options, parquet=parquet_fields(location, options))
    problem = "" if state.size_bytes else "it is empty (0 bytes)"
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of large pictures, both of which are dealt with here.
        warnings.simplefilter("ignore")
        if not problem:
            problem = _scan_groups(scan, state.size_bytes, advance)
    if not problem and not scan.num_groups:
        problem = "it holds no samples"
    record = ShardRecord(
        location=location,
        size_bytes=state.size_bytes,
        mtime_ns=state.mtime_ns,
        version=state.version,
        head_tail_crc32=head_tail_crc32(location),
        num_samples=len(scan.rows),
    )
    return ShardScan(
        record=record,
        problem=problem,
        samples=_batch(scan.rows, SAMPLE_SCHEMA),
        captions=caption_batch(scan.texts, scan.tokens, scan.owners),
        columns=column_batch(scan.values, options),
        rejected=[rejection for _, rejection in sorted(scan.rejected)],
        num_empty_texts=scan.num_empty_texts,
    )


def column_batch(values: list[tuple[Any, ...]], options: ScanOptions) -> pa.RecordBatch:
    """The optional columns of some samples; without any there are rows but no columns."""
    types = options.column_types
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])
    return _batch(values, schema)


def _scan_groups(scan: _Scan, size_bytes: int, advance: Callable[[int], None]) -> str:
    """Fill `scan`; returns what is wrong with the tar, or nothing."""
    done_bytes = 0
    problem = ""
    with open_binary(scan.location) as file:
        groups = group_members(walk_tar(file, size_bytes))
        try:
            for group in groups:
                try:
                    scan.add(_candidate(file, group, scan))
                except RejectedSampleError as error:
                    scan.reject(scan.num_groups, group.key, error)
                scan.num_groups += 1
                ends = [member.offset + member.num_bytes for member in group.members.values()]
                position = max(ends, default=done_bytes)
                advance(position - done_bytes)
                done_bytes = position
        except TarError as error:
            problem = str(error)
        scan.tokenise()
    advance(size_bytes - done_bytes)
    return problem


def _candidate(file: BinaryIO, group: MemberGroup, scan: _Scan) -> _Candidate:
    options = scan.options
    if group.cut_member:
        detail = f"the tar ends inside {group.cut_member}"
        raise RejectedSampleError(Reason.TAR_CUT_SHORT, detail, group.cut_member)
    image = _image_member(group)
    document = _read_json(file, group, options)
    caption_member, texts = _read_texts(file, group, options, document)
    label = _read_label(file, group)
    if image.num_bytes > options.max_image_bytes:
        detail = f"{image.num_bytes} bytes exceed the limit of {options.max_image_bytes}"
        raise RejectedSampleError(Reason.TOO_LARGE, detail, image.name)
    data = _read(file, image)
    try:
        facts = check_image(
            data,
            full_decode=options.full_decode,
            dhash=options.dhash,
            max_pixels=options.max_image_pixels,
        )
    except RejectedSampleError as error:
        error.member = image.name
        raise
    values = field_values(options, document, scan.parquet.get(group.key, {}))
    if options.sha256:
        values += (hashlib.sha256(data).digest(),)
    if options.dhash:
        values += (facts.dhash,)
    return _Candidate(
        place=scan.num_groups,
        key=group.key,
        member=caption_member,
        row=(
            *(group.key, 0, image.offset, image.num_bytes),
            *(facts.width, facts.height, label, int(facts.plain)),
        ),
        values=values,
        texts=texts,
    )


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


def _read_json(file: BinaryIO, group: MemberGroup, options: ScanOptions) -> dict[str, Any]:
    """The sample's json if anything in it is wanted; empty if it is none and no caption is there.

    A sample with captions elsewhere is not lost because of its metadata.
    """
    member = group.members.get("json")
    if member is None or not (options.json_field or options.fields):
        return {}
    try:
        content = _decode(_read_text_bytes(file, member), member.name)
        return _parse_json(content, member.name)
    except RejectedSampleError:
        if options.json_field:
            raise
        return {}


def _read_texts(
    file: BinaryIO, group: MemberGroup, options: ScanOptions, document: dict[str, Any]
) -> tuple[str, list[str]]:
    """The member that holds the texts of a sample, and the texts, checked but not tokenised."""
    suffix, reason = "json" if options.json_field else "txt", Reason.MISSING_CAPTION
    if options.captions == "class":
        suffix, reason = "cls", Reason.BAD_LABEL
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
    return _read(file, member)


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


def _parse_json(content: str, member: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RejectedSampleError(Reason.BAD_JSON, f"not JSON: {error}", member) from None
    if not isinstance(document, dict):
        raise RejectedSampleError(Reason.MISSING_CAPTION, "not a JSON object", member)
    return document


def _json_texts(document: dict[str, Any], json_field: str, member: str) -> list[str]:
    value = document.get(json_field)
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


def _batch(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
