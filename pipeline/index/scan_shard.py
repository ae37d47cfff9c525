"""Read one shard through and sort its samples into usable and rejected.

A rejected sample never ends the scan: it is recorded with a reason, a machine word to count by,
and one sentence a person can act on.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index import SAMPLE_SCHEMA, ShardRecord
from tessera.pipeline.index.captions import caption_batch
from tessera.pipeline.index.clues import NUM_PEEKED, Clues
from tessera.pipeline.index.image_check import check_image
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.rejection import Reason, RejectedSampleError, Rejection
from tessera.pipeline.index.sample_columns import field_values, parquet_fields
from tessera.pipeline.index.sample_texts import (
    MAX_TEXT_BYTES,
    MOST_NAMED,
    missing,
    read_json,
    read_label,
    read_member,
    read_texts,
)
from tessera.pipeline.index.tar_walk import (
    MemberGroup,
    TarError,
    TarMember,
    group_members,
    walk_tar,
)
from tessera.pipeline.storage import file_state, head_tail_crc32, open_binary, stem_of

_TEXTS_AT_ONCE = 2048
_ELSEWHERE = "; other members of it lie elsewhere in the tar, which is not sorted by name"


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
    clues: Clues
    """What else was seen."""


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
    prefix: str
    """Of the keys."""
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
    clues: Clues = field(default_factory=Clues)
    num_peeked: int = 0

    def reject(self, place: int, key: str, error: RejectedSampleError) -> None:
        key = self.prefix + key
        rejection = Rejection(key, self.location, error.member, error.reason, error.detail)
        self.rejected.append((place, rejection))

    def name_apart(self) -> None:
        """Say it of samples whose image and caption were found, but not as neighbours."""
        by_reason: dict[str, set[str]] = {}
        for _, each in self.rejected:
            if not each.member:
                by_reason.setdefault(each.reason, set()).add(each.key)
        without_text = by_reason.get(Reason.MISSING_CAPTION, set()) | by_reason.get(
            Reason.BAD_LABEL, set()
        )
        apart = by_reason.get(Reason.MISSING_IMAGE, set()) & without_text
        self.clues.num_apart = len(apart)
        if apart:
            self.rejected = [
                (place, each._replace(detail=each.detail + _ELSEWHERE))
                if each.key in apart and not each.member
                else (place, each)
                for place, each in self.rejected
            ]

    def add(self, candidate: _Candidate) -> None:
        """Texts wait for company: a batch is tokenised several times faster than one by one."""
        self.candidates.append(candidate)
        self.num_waiting_texts += len(candidate.texts)
        if self.num_waiting_texts >= _TEXTS_AT_ONCE:
            self.tokenise()

    def tokenise(self) -> None:
        """Turn the waiting samples into rows; those without a token are rejected."""
        from tessera.pipeline.index.tokenizer import encode_captions

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
    scan = _Scan(
        location=location,
        options=options,
        parquet=parquet_fields(location, options),
        prefix=f"{stem_of(location)}/" if options.keys_per_shard else "",
    )
    problem = "" if state.size_bytes else "it is empty (0 bytes)"
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of large pictures, both of which are dealt with here.
        warnings.simplefilter("ignore")
        if not problem:
            problem = _scan_groups(scan, state.size_bytes, advance)
    if not problem and not scan.num_groups:
        problem = "it holds no samples"
    scan.name_apart()
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
        clues=scan.clues,
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
        groups = group_members(walk_tar(file, size_bytes), to_last_dot=scan.options.key_to_last_dot)
        try:
            for group in groups:
                scan.clues.see(group.members)
                try:
                    scan.add(_candidate(file, group, scan))
                except RejectedSampleError as error:
                    scan.reject(scan.num_groups, group.key, error)
                _peek(file, group, scan)
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
    image = _image_member(group, options)
    document = read_json(file, group, options)
    caption_member, texts = read_texts(file, group, options, document)
    if not options.json_field and options.captions != "class":
        scan.clues.num_texts += 1
        scan.clues.num_texts_of_lines += len(texts) > 1 or len(texts[0].splitlines()) > 1
    label = read_label(file, group)
    if image.num_bytes > options.max_image_bytes:
        detail = f"{image.num_bytes} bytes exceed the limit of {options.max_image_bytes}"
        raise RejectedSampleError(Reason.TOO_LARGE, detail, image.name)
    data = read_member(file, image)
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
            *(scan.prefix + group.key, 0, image.offset, image.num_bytes),
            *(facts.width, facts.height, label, int(facts.plain)),
        ),
        values=values,
        texts=texts,
    )


def _image_member(group: MemberGroup, options: ScanOptions) -> TarMember:
    for suffix in options.image_suffixes:
        if suffix in group.members:
            return group.members[suffix]
    names = sorted(group.members)
    others = ", ".join(f".{suffix}" for suffix in names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        others += f" and {len(names) - MOST_NAMED} more"
    wanted = ", .".join(options.image_suffixes)
    raise missing(group, Reason.MISSING_IMAGE, f"no .{wanted} among {others}")


def _peek(file: BinaryIO, group: MemberGroup, scan: _Scan) -> None:
    """Look into the json of the first samples: captions may lie in it that nobody asked for."""
    member = group.members.get("json")
    if member is None or scan.num_peeked >= NUM_PEEKED or member.num_bytes > MAX_TEXT_BYTES:
        return
    scan.num_peeked += 1
    with suppress(ValueError, RecursionError):
        scan.clues.peek(json.loads(read_member(file, member)))


def _batch(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
