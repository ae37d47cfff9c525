"""The index of a data set: one row per usable sample, memory-mapped by every rank.

An index is a folder that `tools/index_shards.py` writes:

    samples.arrow             one row per sample, in the order of the sorted shards
    captions/<source>.arrow   one row per text
    captions/<source>.json    where a source that was added later comes from
    columns/<name>.arrow      optional: one value per sample, such as its url or sha256
    rejected.arrow            one row per sample that cannot be used, with the reason
    scans/<shard>.arrow       what a scan of each shard found; only indexing again reads them
    index.json                shards, counts, fingerprint

The row of a sample in `samples.arrow` is its id everywhere else.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index.arrow_file import column_view, map_batch
from tessera.pipeline.index.captions import CaptionRecord, CaptionTable, read_record
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.shard_record import ShardRecord, shard_records
from tessera.pipeline.storage import file_crc32, folder_of, stem_of

FORMAT_VERSION = 2
INDEX_FILE = "index.json"
SAMPLES_FILE = "samples.arrow"
REJECTED_FILE = "rejected.arrow"
CAPTIONS_DIR = "captions"
COLUMNS_DIR = "columns"
DEFAULT_SOURCE = "caption"
COLUMN_FIELD = "value"
_NUM_STATE_THREADS = 16
_MAX_LISTED = 20
SOURCE_SEPARATOR = ":"
"""Between the name of a source and a key, where an index has several sources."""

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("plain", pa.int8(), nullable=False),
    ]
)
REJECTED_SCHEMA = pa.schema(
    [pa.field(name, pa.large_string()) for name in ("key", "shard", "member", "reason", "detail")]
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Index:
    """An opened index. The arrays are read-only views of the mapped file."""

    directory: Path
    """The folder, resolved."""
    fingerprint: str
    """SHA-256 (hex) over keys, shard names, offsets, sizes and token ids: the data set's name."""
    tokenizer: str
    """Which tokenizer made the token ids."""
    scan_options: ScanOptions
    """How the samples were read and checked."""
    shards: tuple[ShardRecord, ...]
    """Shards with at least one usable sample, sorted by location."""
    rejections: dict[str, int]
    """Samples that cannot be used, counted by reason."""
    shard: NDArray[np.int32]
    """[M] number of the sample's shard in `shards`, ascending."""
    offset: NDArray[np.int64]
    """[M] first byte of the image in its shard."""
    size: NDArray[np.int32]
    """[M] length of the image file in bytes."""
    width: NDArray[np.int32]
    """[M] pixels, after the EXIF orientation is applied."""
    height: NDArray[np.int32]
    """[M] pixels, after the EXIF orientation is applied."""
    label: NDArray[np.int32]
    """[M] class of a labelled set; -1 where the sample has no `.cls`."""
    plain: NDArray[np.int8]
    """[M] 1 where the image is a plain JPEG (`pipeline.decoding.jpeg_walk.plain_jpeg`), 0 where it
    is not; -1, not known, in an index of the first edition."""
    table: pa.RecordBatch = field(repr=False)
    """All columns of `samples.arrow`, for columnar work with pyarrow."""

    @property
    def num_samples(self) -> int:
        """M, the number of usable samples."""
        return len(self.shard)

    @property
    def shard_sizes(self) -> list[int]:
        """[H] usable samples of each shard; its rows follow those of the shard before it."""
        return [record.num_samples for record in self.shards]

    @property
    def num_rejected(self) -> int:
        """Number of samples that cannot be used."""
        return sum(self.rejections.values())

    @property
    def sources(self) -> list[str]:
        """Names of the caption sources, sorted."""
        return sorted(path.stem for path in (self.directory / CAPTIONS_DIR).glob("*.arrow"))

    @property
    def column_names(self) -> list[str]:
        """Names of the optional columns, sorted."""
        return sorted(path.stem for path in (self.directory / COLUMNS_DIR).glob("*.arrow"))

    def column(self, name: str) -> pa.Array:
        """Map one optional column.

        Returns:
            [M] values; missing ones are empty strings or NaN.

        Raises:
            ValueError: there is no such column (the message lists those there are), its file is
                damaged, or it belongs to another index.
        """
        if name not in self.column_names:
            known = ", ".join(self.column_names) or "none"
            msg = f"the index {self.directory} has no column {name!r}; it has: {known}"
            raise ValueError(f"{msg}. Add it with `--columns {name}` of tools/index_shards.py")
        path = self.directory / COLUMNS_DIR / f"{name}.arrow"
        batch = map_batch(path)
        if batch.schema.names != [COLUMN_FIELD] or batch.num_rows != self.num_samples:
            found = f"{batch.num_rows} rows of {', '.join(batch.schema.names)}"
            raise ValueError(f"{path} does not belong to this index: it holds {found}")
        return batch.column(COLUMN_FIELD)

    @property
    def source_names(self) -> list[str]:
        """Names of the data sets that the shards are of, sorted; within each, keys are unique."""
        return sorted({record.source for record in self.shards})

    def sources_of(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
        """Places in `source_names` of the samples `ids`."""
        names = self.source_names
        numbers = np.array([names.index(record.source) for record in self.shards], np.int32)
        return numbers[self.shard[np.asarray(ids, np.int64)]]

    def keys(self, ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Keys of the samples `ids`, none of them twice: `SOURCE:KEY` if there are several."""
        keys = self.table.column("key").take(pa.array(ids, pa.int64())).to_pylist()
        names = self.source_names
        if len(names) < 2:
            return keys
        numbers = self.sources_of(ids).tolist()
        pairs = zip(numbers, keys, strict=True)
        return [f"{names[number]}{SOURCE_SEPARATOR}{key}" for number, key in pairs]

    def keys_in_shard(self, number: int) -> list[str]:
        """Keys of a shard's samples in their order, as its tar has them."""
        first, last = np.searchsorted(self.shard, [number, number + 1]).tolist()
        keys = self.table.column("key").slice(first, last - first).to_pylist()
        if not self.scan_options.keys_per_shard:
            return keys
        prefix = f"{stem_of(self.shards[number].location)}/"
        return [key.removeprefix(prefix) for key in keys]

    def captions(self, source: str = DEFAULT_SOURCE) -> CaptionTable:
        """Map one caption source.

        Raises:
            ValueError: there is no such source (the message lists those there are), its file is
                damaged, or it was added to another state of the index.
        """
        self.caption_record(source)
        return CaptionTable(self.directory / CAPTIONS_DIR / f"{source}.arrow", self.num_samples)

    def caption_record(self, source: str) -> CaptionRecord | None:
        """Where a caption source comes from; None for those that were made with the index.

        Raises:
            ValueError: there is no such source (the message lists those there are), or it was
                added to another state of the index.
        """
        if source not in self.sources:
            known = ", ".join(self.sources) or "none"
            msg = f"the index {self.directory} has no caption source {source!r}"
            raise ValueError(f"{msg}; it has: {known}. tools/add_captions.py adds one")
        record = read_record(self.directory / CAPTIONS_DIR / f"{source}.arrow")
        if record and record.index_fingerprint != self.fingerprint:
            raise ValueError(
                f"the caption source {source!r} of {self.directory} was added to another state of "
                "the index: add it again with tools/add_captions.py and --replace"
            )
        return record

    def check_files(self) -> None:
        """See that every bit of the index's own files is what was written; reads them whole.

        Sources and selections added later are not among them, and an index from before there were
        checksums has none to hold.

        Raises:
            ValueError: a file is damaged; the message says how to make the index again.
        """
        sums: dict[str, int] = read_manifest(self.directory).get("crc32", {})
        with ThreadPoolExecutor(_NUM_STATE_THREADS) as pool:
            found = pool.map(lambda name: file_crc32(self.directory / name), sums)
            for (name, expected), crc in zip(sums.items(), found, strict=True):
                if crc != expected:
                    what = f"{name} is not what was written"
                    raise ValueError(f"{_damage(self.directory, what)}; {self._how_to_reindex()}")

    def check_shards(self) -> None:
        """See that the shards are still those that were indexed; reads no data unless it must.

        Raises:
            FileNotFoundError: shards are gone; the message names them.
            ValueError: shards have changed; the message names them and how to index again.
        """
        missing: list[str] = []
        changed: list[str] = []
        give_up = Event()

        def check(record: ShardRecord) -> None:
            try:
                if not record.is_unchanged(give_up):
                    changed.append(record.location)
            except FileNotFoundError:
                missing.append(record.location)

        # Each question to a network file system waits, so they wait together.
        pool = ThreadPoolExecutor(_NUM_STATE_THREADS)
        try:
            for _ in pool.map(check, self.shards):
                pass
        finally:
            give_up.set()
            pool.shutdown(cancel_futures=True)
        if missing:
            msg = f"{len(missing)} of {len(self.shards)} shards of {self.directory} are gone"
            raise FileNotFoundError(f"{msg}: {_listed(missing)}; {self._how_to_reindex()}")
        if changed:
            msg = f"{len(changed)} of {len(self.shards)} shards changed after they were indexed"
            raise ValueError(f"{msg}: {_listed(changed)}; {self._how_to_reindex()}")

    def _how_to_reindex(self) -> str:
        sources = {record.location: record.source for record in self.shards}
        return f"index again with `{index_command(sources, self.directory, self.scan_options)}`"

    def __reduce__(self) -> tuple[Any, ...]:
        """Map the files again in the process that unpickles this."""
        return open_index, (self.directory,)


def open_index(index_dir: Path) -> Index:
    """Open an index; its tables are mapped, not read.

    Raises:
        FileNotFoundError: there is no index; the message names the command that makes one.
        ValueError: the index is damaged or of another format version.
    """
    directory = Path(index_dir).resolve()
    manifest = read_manifest(directory)
    try:
        _check_file_sizes(directory, manifest["files"])
        table = map_batch(directory / SAMPLES_FILE, SAMPLE_SCHEMA, missing={"plain": -1})
        map_batch(directory / REJECTED_FILE, REJECTED_SCHEMA)
        shards = shard_records(directory, manifest["shards"])
        index = Index(
            directory=directory,
            fingerprint=manifest["fingerprint"],
            tokenizer=manifest["tokenizer"],
            scan_options=ScanOptions.from_json(manifest["options"]),
            shards=shards,
            rejections=dict(manifest["rejections"]),
            table=table,
            **{name: column_view(table, name) for name in SAMPLE_SCHEMA.names if name != "key"},
        )
        expected = manifest["num_samples"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(_damaged(directory, f"{INDEX_FILE} lacks {error}")) from error
    counted = sum(record.num_samples for record in shards)
    if not index.num_samples == expected == counted:
        found = f"{index.num_samples} rows, {counted} samples in {len(shards)} shards"
        raise ValueError(_damaged(directory, found))
    ends = np.cumsum([0, *index.shard_sizes])
    for number, (first, last) in enumerate(itertools.pairwise(ends.tolist())):
        if not (index.shard[first:last] == number).all():
            raise ValueError(_damaged(directory, f"rows of shard {number} name another one"))
    return index


def index_command(
    sources: Mapping[str, str], directory: Path, options: ScanOptions, *more: str
) -> str:
    """The command that makes an index.

    Args:
        sources: source of each shard by its location, "" if there is but one.
        directory: folder of the index.
        options: what is read from every sample.
        more: words at its end.
    """
    folders = sorted({(folder_of(location), source) for location, source in sources.items()})
    places = [f"{source}={folder}" if source else folder for folder, source in folders]
    words = ["tools/index_shards.py", *places, "--out", str(directory), *options.command_line]
    return f"python {shlex.join([*words, *more])}"


def read_manifest(directory: Path) -> dict[str, Any]:
    """The content of an index's `index.json`.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: the file is damaged or of another format version.
    """
    path = directory / INDEX_FILE
    if not path.is_file():
        command = f"python tools/index_shards.py SHARDS --out {directory}"
        raise FileNotFoundError(f"there is no index in {directory}; make one with `{command}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(_damaged(directory, f"{INDEX_FILE}: {error!r}")) from error
    if version != FORMAT_VERSION:
        msg = f"{path} has format version {version}, this code reads version {FORMAT_VERSION}"
        raise ValueError(f"{msg}; index the shards again or use the code that made it")
    return manifest


def _check_file_sizes(directory: Path, sizes: dict[str, int]) -> None:
    for name, size_bytes in sizes.items():
        path = directory / name
        if not path.is_file():
            raise ValueError(_damaged(directory, f"{name} is missing"))
        found = path.stat().st_size
        if found != size_bytes:
            raise ValueError(_damaged(directory, f"{name} has {found} bytes, not {size_bytes}"))


def _damaged(directory: Path, what: str) -> str:
    command = f"python tools/index_shards.py SHARDS --out {directory}"
    return f"{_damage(directory, what)}; make it again with `{command}`"


def _damage(directory: Path, what: str) -> str:
    return f"the index {directory} is damaged ({what})"


def _listed(locations: list[str]) -> str:
    shown = sorted(locations)[:_MAX_LISTED]
    more = len(locations) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
