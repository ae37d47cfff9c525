"""Read one shard through: a row for each of its samples, usable or rejected with the reason.

A scan is kept as one Arrow file. Its table has a row a sample, in the order of the tar; what is
known of the shard as a whole is JSON in the schema's metadata. An index is the concatenation of the
scans of its shards, so a shard that did not change is never read twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tessera.pipeline.durable import write_bytes
from tessera.pipeline.index.captions import CAPTION_SCHEMA, caption_batch
from tessera.pipeline.index.clues import NUM_PEEKED, Clues
from tessera.pipeline.index.image_check import check_image
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.rejection import Reason, RejectedSampleError, Rejection
from tessera.pipeline.index.sample_columns import field_values, parquet_fields
from tessera.pipeline.index.sample_texts import (
    MAX_TEXT_BYTES,
    image_member,
    read_json,
    read_label,
    read_member,
    read_texts,
)
from tessera.pipeline.index.shard_record import ShardRecord, stored_location
from tessera.pipeline.index.tar_walk import MemberGroup, TarError, group_members, walk_tar
from tessera.pipeline.index.tokenizer import TOKENIZER_NAME
from tessera.pipeline.storage import file_state, head_tail_crc32, open_binary, stem_of

_SCAN_VERSION = 3
_METADATA = b"tessera"
_TEXTS_AT_ONCE = 2048
_ELSEWHERE = "; other members of it lie elsewhere in the tar, which is not sorted by name"
_NOTHING = (0, 0, 0, 0, -1, 0)
"""Offset, size, width, height, label and plain of a rejected sample."""
_FIELDS = [
    pa.field("key", pa.large_string(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    *(pa.field(n, pa.int32(), nullable=False) for n in ("size", "width", "height", "label")),
    pa.field("plain", pa.int8(), nullable=False),
    *(pa.field(n, pa.large_string(), nullable=False) for n in ("member", "reason", "detail")),
]
_LISTS = [
    pa.field(n, pa.large_list(pa.field("item", CAPTION_SCHEMA.field(n).type, nullable=False)),
             nullable=False)
    for n in ("text", "tokens")
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardScan:
    """What one shard holds."""

    record: ShardRecord
    """The file; `num_samples` counts the usable ones."""
    problem: str
    """What is wrong with the tar as a whole, in one sentence; empty if nothing is."""
    num_seen: int
    """Rows of the table."""
    num_empty_texts: int
    """Empty texts left out of samples that have others."""
    clues: Clues
    place: Path | pa.RecordBatch
    """The table, or the file that holds it."""

    def table(self, names: Sequence[str] | None = None) -> pa.RecordBatch:
        """A row for each sample: its columns, `reason` (empty if it is usable) and `detail`.

        Args:
            names: of the columns that are read, or None for all.

        Raises:
            OSError: the file is gone or damaged.
        """
        if not isinstance(self.place, Path):
            return self.place.select(list(names)) if names else self.place
        try:
            with pa.OSFile(str(self.place)) as source:
                schema = pa.ipc.open_file(source).schema
                places = [schema.get_field_index(name) for name in names] if names else None
                options = pa.ipc.IpcReadOptions(included_fields=places)
                batch = pa.ipc.open_file(source, options=options).get_batch(0)
            batch.validate(full=True)
        except pa.ArrowException as error:
            raise OSError(f"{self.place} is damaged ({error}): remove it") from error
        return batch

    @property
    def rejected(self) -> list[Rejection]:
        """Samples that cannot be used, in the order of the tar."""
        table = self.table(["key", "member", "reason", "detail"])
        rows = table.filter(pa.array(~usable(table))).to_pylist()
        return [Rejection(shard=self.record.location, **row) for row in rows]


def usable(table: pa.RecordBatch) -> NDArray[np.bool_]:
    """[rows] which samples of a scan's table can be used."""
    return np.asarray(
        pc.call_function("equal", [table.column("reason"), pa.scalar("", pa.large_string())])
    )


def captions_of(table: pa.RecordBatch) -> pa.RecordBatch:
    """The texts of a scan's rows, as an index holds them; `sample` counts these rows."""
    texts, tokens = table.column("text"), table.column("tokens")
    counts = texts.value_lengths().to_numpy(zero_copy_only=False)
    owners = pa.array(np.repeat(np.arange(table.num_rows), counts))
    return pa.RecordBatch.from_arrays(
        [texts.flatten(), tokens.flatten(), owners], schema=CAPTION_SCHEMA
    )


def scan_name(location: str, directory: Path) -> str:
    """File name of a shard's scan, the same after index and shards have moved together."""
    stored = stored_location(location, directory)
    return hashlib.sha256(stored.encode()).hexdigest()[:24] + ".arrow"


def write_scan(scan: ShardScan, path: Path, options: ScanOptions) -> None:
    """Write a scan, whole or not at all."""
    content = {
        "settings": _settings(options),
        "record": asdict(scan.record),
        "clues": scan.clues.to_json(),
        **{name: getattr(scan, name) for name in ("problem", "num_seen", "num_empty_texts")},
    }
    table = scan.table()
    schema = table.schema.with_metadata({_METADATA: json.dumps(content)})
    sink = pa.BufferOutputStream()
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, schema, options=packed) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(table.columns, schema=schema))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, memoryview(sink.getvalue()))


def read_scan(path: Path, location: str, options: ScanOptions) -> ShardScan | None:
    """The scan of a shard, if the file is one, made with these options; its table stays there."""
    try:
        with pa.OSFile(str(path)) as source:
            metadata = pa.ipc.open_file(source).schema.metadata or {}
        content = json.loads(metadata.get(_METADATA, b"null"))
        if not content or content.pop("settings") != _settings(options):
            return None
        record = ShardRecord(**{**content.pop("record"), "location": location})
        clues = Clues.from_json(content.pop("clues"))
        return ShardScan(record=record, clues=clues, place=path, **content)
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError):
        return None


def _settings(options: ScanOptions) -> dict[str, Any]:
    """What must be the same for a stored scan to be used."""
    return {"version": _SCAN_VERSION, "tokenizer": TOKENIZER_NAME, "options": options.to_json()}


@dataclass(kw_only=True, slots=True)
class _Scan:
    """What is known of a shard while it is read."""

    location: str
    options: ScanOptions
    parquet: dict[str, dict[str, Any]]
    prefix: str
    """Of the keys."""
    nothing: tuple[Any, ...]
    """Optional columns of a rejected sample."""
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    """As `_FIELDS`, one for each sample of the tar."""
    values: list[tuple[Any, ...]] = field(default_factory=list)
    waiting: list[tuple[int, list[str]]] = field(default_factory=list)
    """Rows whose texts wait for company: a batch is tokenised several times faster."""
    num_waiting_texts: int = 0
    texts: list[str] = field(default_factory=list)
    tokens: list[NDArray[np.uint16]] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    num_empty_texts: int = 0
    clues: Clues = field(default_factory=Clues)
    num_peeked: int = 0

    def reject(self, key: str, error: RejectedSampleError) -> None:
        why = (error.member, str(error.reason), error.detail)
        self.rows.append((self.prefix + key, *_NOTHING, *why))
        self.values.append(self.nothing)

    def add(self, row: tuple[Any, ...], values: tuple[Any, ...], texts: list[str]) -> None:
        self.waiting.append((len(self.rows), texts))
        self.rows.append(row)
        self.values.append(values)
        self.num_waiting_texts += len(texts)
        if self.num_waiting_texts >= _TEXTS_AT_ONCE:
            self.tokenise()

    def tokenise(self) -> None:
        """Give the waiting rows their texts; those without a token are rejected."""
        from tessera.pipeline.index.tokenizer import encode_captions

        encoded = iter(encode_captions([text for _, texts in self.waiting for text in texts]))
        for place, texts in self.waiting:
            # A caption such as "&nbsp;" has letters but no tokens.
            pairs = [(text, ids) for text in texts if len(ids := next(encoded))]
            if not pairs:
                key, member = self.rows[place][0], self.rows[place][-3]
                why = (member, str(Reason.EMPTY_CAPTION), "nothing but white space")
                self.rows[place] = (key, *_NOTHING, *why)
                continue
            self.num_empty_texts += len(texts) - len(pairs)
            self.owners += [place] * len(pairs)
            self.texts += [text for text, _ in pairs]
            self.tokens += [ids for _, ids in pairs]
        self.waiting.clear()
        self.num_waiting_texts = 0

    def name_apart(self) -> None:
        """Say it of samples whose image and caption were found, but not as neighbours."""
        by_reason: dict[str, set[str]] = {}
        for key, *_, member, reason, _detail in self.rows:
            if reason and not member:
                by_reason.setdefault(reason, set()).add(key)
        images, texts, labels = (
            by_reason.get(reason, set())
            for reason in (Reason.MISSING_IMAGE, Reason.MISSING_CAPTION, Reason.BAD_LABEL)
        )
        apart = images & (texts | labels)
        self.clues.num_apart = len(apart)
        for place, (key, *facts, member, reason, detail) in enumerate(self.rows if apart else ()):
            if key in apart and reason and not member:
                self.rows[place] = (key, *facts, member, reason, detail + _ELSEWHERE)

    def table(self) -> pa.RecordBatch:
        types = self.options.column_types
        captions = caption_batch(self.texts, self.tokens, self.owners)
        bounds = np.searchsorted(np.asarray(self.owners, np.int64), np.arange(len(self.rows) + 1))
        lists = [
            pa.LargeListArray.from_arrays(pa.array(bounds, pa.int64()), captions.column(each.name),
                                          type=each.type)
            for each in _LISTS
        ]  # fmt: skip
        extra = [pa.field(name, kind, nullable=False) for name, kind in types.items()]
        arrays = [*_arrays(self.rows, _FIELDS), *lists, *_arrays(self.values, extra)]
        # A field of the json may be called as one of these columns: the prefix keeps them apart.
        named = [each.with_name(f"column.{each.name}") for each in extra]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*_FIELDS, *_LISTS, *named]))


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
        nothing=tuple(_missing_value(kind) for kind in options.column_types.values()),
    )
    problem = "" if state.size_bytes else "it is empty (0 bytes)"
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of large pictures, both of which are dealt with here.
        warnings.simplefilter("ignore")
        if not problem:
            problem = _scan_groups(scan, state.size_bytes, advance)
    if not problem and not scan.rows:
        problem = "it holds no samples"
    scan.name_apart()
    table = scan.table()
    record = ShardRecord(
        location=location,
        size_bytes=state.size_bytes,
        mtime_ns=state.mtime_ns,
        version=state.version,
        head_tail_crc32=head_tail_crc32(location),
        num_samples=int(np.count_nonzero(usable(table))),
    )
    return ShardScan(
        record=record,
        problem=problem,
        num_seen=table.num_rows,
        num_empty_texts=scan.num_empty_texts,
        clues=scan.clues,
        place=table,
    )


def of_source(scan: ShardScan, source: str) -> ShardScan:
    """The scan of a shard that is of a source."""
    return replace(scan, record=replace(scan.record, source=source))


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
                    scan.add(*_sample(file, group, scan))
                except RejectedSampleError as error:
                    scan.reject(group.key, error)
                _peek(file, group, scan)
                ends = [member.offset + member.num_bytes for member in group.members.values()]
                position = max(ends, default=done_bytes)
                advance(position - done_bytes)
                done_bytes = position
        except TarError as error:
            problem = str(error)
        scan.tokenise()
    advance(size_bytes - done_bytes)
    return problem


def _sample(
    file: BinaryIO, group: MemberGroup, scan: _Scan
) -> tuple[tuple[Any, ...], tuple[Any, ...], list[str]]:
    """Row, optional columns and texts of a sample with a sound image."""
    options = scan.options
    if group.cut_member:
        detail = f"the tar ends inside {group.cut_member}"
        raise RejectedSampleError(Reason.TAR_CUT_SHORT, detail, group.cut_member)
    image = image_member(group, options)
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
    place = (image.offset, image.num_bytes, facts.width, facts.height, label, int(facts.plain))
    return (scan.prefix + group.key, *place, caption_member, "", ""), values, texts


def _peek(file: BinaryIO, group: MemberGroup, scan: _Scan) -> None:
    """Look into the json of the first samples: captions may lie in it that nobody asked for."""
    member = group.members.get("json")
    if member is None or scan.num_peeked >= NUM_PEEKED or member.num_bytes > MAX_TEXT_BYTES:
        return
    scan.num_peeked += 1
    with suppress(ValueError, RecursionError):
        scan.clues.peek(json.loads(read_member(file, member)))


def _missing_value(kind: pa.DataType) -> Any:
    if pa.types.is_fixed_size_binary(kind):
        return bytes(kind.byte_width)
    return {pa.float64(): math.nan, pa.uint64(): 0}.get(kind, "")


def _arrays(rows: list[tuple[Any, ...]], fields: Sequence[pa.Field]) -> list[pa.Array]:
    columns = list(zip(*rows, strict=True)) or [()] * len(fields)
    return [pa.array(column, each.type) for column, each in zip(columns, fields, strict=True)]
