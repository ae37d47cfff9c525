"""Which shards are done: those whose statistics, metadata and tar tell the same story.

img2dataset calls a shard done when its `_stats.json` is there. It can be there for a shard that
lost rows (an error while writing), and a tar cut off by a kill reads well up to the cut. So every
shard is checked against the rows of the table that belong in it:

- the metadata holds exactly the row numbers of that part of the table;
- `count` and `successes` of the statistics are those of the metadata;
- the tar is whole, and holds picture and caption of each success, and of no other row.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import fsspec.core
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.indexing.tar_walk import walk_tar
from tools.download.causes import classify
from tools.download.img2dataset_job import Job

JOB_FILE = "job.json"
OUTCOME_COLUMNS = ("row_id", "url", "caption", "status", "error_message")
_VERIFIED = "verified.jsonl"
_SHARD_DIGITS = 5
_EXTENSIONS = ("tar", "parquet", "json")


Listing = dict[str, tuple[int, str]]
"""(bytes, time of change or version) of files, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardState:
    """A shard that was checked."""

    shard_id: int
    """Number of the shard."""
    files: tuple[tuple[int, str], ...]
    """(bytes, time of change or version) of tar, metadata and statistics when it was checked."""
    problem: str | None
    """What is wrong with it; None: it is done."""
    num_rows: int = 0
    """Rows of the table in it, failures too."""
    num_successes: int = 0
    """Pictures in it."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed rows by cause."""
    start_time: float = 0.0
    """When its download began, in seconds since the epoch."""
    end_time: float = 0.0
    """When it ended, in seconds since the epoch."""

    @property
    def tar_bytes(self) -> int:
        """Length of its tar."""
        return self.files[0][0]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlace:
    """Where the rows of a shard lie in the table."""

    part: Path
    """Parquet part of the table."""
    first: int
    """Place in the part of the shard's first row."""
    num_rows: int
    """Rows in the shard; the last shard of a part may be a short one."""


class ShardBook:
    """The shards of one job: which are done, which are wrong, which are missing.

    A check is not repeated while the files of the shard stay as they are, also not by the next
    process: what was found is kept in `verified.jsonl`.
    """

    def __init__(self, folder: Path) -> None:
        """Read the plan of a download.

        Args:
            folder: Holds job.json.

        Raises:
            FileNotFoundError: no download was begun there.
        """
        self.job = load_job(folder)
        self.plan = plan_shards(Path(self.job.table), self.job.samples_per_shard)
        self._files, self._root = cast("tuple[Any, str]", fsspec.core.url_to_fs(self.job.shards))
        self._kept = folder / _VERIFIED
        self._states = self._load()

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return sum(place.num_rows for place in self.plan.values())

    @property
    def finished(self) -> dict[int, ShardState]:
        """Shards that are done, by number."""
        return {n: self._states[n] for n in sorted(self._states) if not self._states[n].problem}

    @property
    def broken(self) -> dict[int, str]:
        """What is wrong with shards that img2dataset calls done, by number."""
        states = sorted(self._states.items())
        return {number: state.problem for number, state in states if state.problem}

    @property
    def complete(self) -> bool:
        """Whether every row of the table is in a shard that is done."""
        return len(self.finished) == len(self.plan)

    def refresh(self, found: Listing | None = None) -> list[ShardState]:
        """Check shards that are new or changed since the last time, and return those.

        Args:
            found: What `listing` returned just now; None: look.
        """
        found = self.listing() if found is None else found
        states = {}
        checked = []
        for number in sorted(self.plan):
            names = [shard_name(number, extension) for extension in _EXTENSIONS]
            if names[2] not in found:
                continue
            files = tuple(found.get(name, (0, "missing")) for name in names)
            known = self._states.get(number)
            if known is None or known.files != files:
                known = self._check(number, files)
                checked.append(known)
            states[number] = known
        self._states = states
        self._keep(checked)
        return checked

    def listing(self) -> Listing:
        """(bytes, time of change or version) of every file beside the shards, by name."""
        self._files.invalidate_cache(self._root)
        try:
            entries = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return {
            entry["name"].rsplit("/", 1)[-1]: (int(entry["size"] or 0), _version(entry))
            for entry in entries
            if entry["type"] == "file"
        }

    def set_aside(self) -> list[ShardState]:
        """Clear the way for img2dataset to do again what is wrong; nothing else may be running.

        Tar and metadata of shards that are wrong move to `quarantine`, beside the shards. Remains
        of shards that were never finished are removed: read as a data set, they would be taken
        for whole ones.

        Returns:
            The shards that were moved.
        """
        moved = [state for state in self._states.values() if state.problem]
        quarantine = f"{self._root.rstrip('/').rpartition('/')[0]}/quarantine"
        found = self.listing()
        done = {
            shard_name(number, extension) for number in self.finished for extension in _EXTENSIONS
        }
        for state in moved:
            # Without statistics first: a kill in the middle must not leave a shard called done.
            self._remove(shard_name(state.shard_id, "json"))
            self._files.makedirs(quarantine, exist_ok=True)
            for extension in ("tar", "parquet"):
                name = shard_name(state.shard_id, extension)
                if name in found:
                    self._files.mv(f"{self._root}/{name}", self._free_name(quarantine, name))
                    found.pop(name)
            del self._states[state.shard_id]
        planned = {shard_name(number, kind) for number in self.plan for kind in _EXTENSIONS}
        for name in sorted(planned & found.keys() - done):
            self._remove(name)
        if self._files.exists(f"{self._root}/_tmp"):
            self._files.rm(f"{self._root}/_tmp", recursive=True)
        return moved

    def outcomes(self, number: int, columns: Sequence[str] = OUTCOME_COLUMNS) -> pa.Table:
        """The metadata of a shard that is done, one row for each of its rows of the table."""
        with self._files.open(f"{self._root}/{shard_name(number, 'parquet')}", "rb") as file:
            content = pa.BufferReader(file.read())
        # Python files that Arrow's threads read can abort a process as it ends: apache/arrow 50482.
        return pq.read_table(content, columns=list(columns), use_threads=False)

    def _remove(self, name: str) -> None:
        path = f"{self._root}/{name}"
        if self._files.exists(path):
            self._files.rm(path)

    def _free_name(self, folder: str, name: str) -> str:
        number, stem, extension = 0, *name.rsplit(".", 1)
        while self._files.exists(f"{folder}/{stem}-{number}.{extension}"):
            number += 1
        return f"{folder}/{stem}-{number}.{extension}"

    def _check(self, number: int, files: tuple[tuple[int, str], ...]) -> ShardState:
        try:
            return self._checked(number, files)
        except (ValueError, KeyError, OSError, pa.ArrowException) as error:
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return ShardState(shard_id=number, files=files, problem=problem)

    def _checked(self, number: int, files: tuple[tuple[int, str], ...]) -> ShardState:
        stats = json.loads(self._files.cat_file(f"{self._root}/{shard_name(number, 'json')}"))
        rows = self.outcomes(number)
        place = self.plan[number]
        row_ids = _row_ids(place.part, place.part.stat().st_mtime_ns)
        expected = row_ids.slice(place.first, place.num_rows).to_pylist()
        found = rows["row_id"].to_pylist()
        if sorted(found) != sorted(expected):
            missing = len(set(expected) - set(found))
            raise ValueError(f"{len(found)} rows in its metadata, {missing} of the table missing")
        status = rows["status"].to_pylist()
        num_successes = status.count("success")
        if (stats["count"], stats["successes"]) != (len(found), num_successes):
            raise ValueError(
                f"its statistics say {stats['count']} rows and {stats['successes']} successes, "
                f"its metadata {len(found)} and {num_successes}"
            )
        self._check_tar(number, files[0][0], rows)
        return ShardState(
            shard_id=number,
            files=files,
            problem=None,
            num_rows=len(found),
            num_successes=num_successes,
            failures=count_causes(status, rows["error_message"].to_pylist()),
            start_time=float(stats["start_time"]),
            end_time=float(stats["end_time"]),
        )

    def _check_tar(self, number: int, num_bytes: int, rows: pa.Table) -> None:
        captions = {
            f"{row_id:09d}": len((caption or "").encode())
            for row_id, caption, status in zip(
                rows["row_id"].to_pylist(),
                rows["caption"].to_pylist(),
                rows["status"].to_pylist(),
                strict=True,
            )
            if status == "success"
        }
        pictures: set[str] = set()
        texts: dict[str, int] = {}
        with self._files.open(f"{self._root}/{shard_name(number, 'tar')}", "rb") as file:
            for member in walk_tar(file, num_bytes):
                key, _, extension = member.name.partition(".")
                if member.num_bytes and extension == "jpg" and key not in pictures:
                    pictures.add(key)
                elif extension == "txt" and key not in texts:
                    texts[key] = member.num_bytes
                elif extension != "json":
                    raise ValueError(f"its tar holds {member.name} empty, twice or without reason")
        if pictures != captions.keys():
            raise ValueError(f"{len(pictures)} pictures in its tar, {len(captions)} successes")
        if texts != captions:
            raise ValueError("captions in its tar are missing or differ from its metadata")

    def _load(self) -> dict[int, ShardState]:
        if not self._kept.is_file():
            return {}
        states = {}
        for line in self._kept.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                entry["files"] = tuple((size, version) for size, version in entry["files"])
                states[entry["shard_id"]] = ShardState(**entry)
            except (ValueError, TypeError, KeyError):
                continue  # a line cut off by a kill: that shard is checked again
        return {number: state for number, state in states.items() if number in self.plan}

    def _keep(self, states: Sequence[ShardState]) -> None:
        if not states:
            return
        with suppress(OSError), self._kept.open("a", encoding="utf-8") as file:
            # A line cut off by a kill must not swallow this one. It only saves time: on a full
            # disk, clearing up must not fail for want of it.
            file.write("".join(f"\n{json.dumps(asdict(state))}" for state in states) + "\n")


def load_job(folder: Path) -> Job:
    """The job of a download folder.

    Raises:
        FileNotFoundError: no download was begun there.
    """
    path = folder / JOB_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {JOB_FILE}: no download was begun there")
    return Job.from_json(path.read_text(encoding="utf-8"))


def plan_shards(table: Path, samples_per_shard: int) -> dict[int, ShardPlace]:
    """Which rows img2dataset puts into which shard: it begins a new one with every part.

    Args:
        table: Folder of parquet parts, taken in the order of their names.
        samples_per_shard: Most rows in a shard.
    """
    plan: dict[int, ShardPlace] = {}
    for part in sorted(table.glob("*.parquet")):
        num_rows = pq.read_metadata(part).num_rows
        for index in range(math.ceil(num_rows / samples_per_shard)):
            first = index * samples_per_shard
            rows = min(samples_per_shard, num_rows - first)
            plan[len(plan)] = ShardPlace(part=part, first=first, num_rows=rows)
    return plan


def finished_shards(folder: Path) -> dict[int, ShardState]:
    """Shards of a download that are done, by number; new ones are checked first."""
    book = ShardBook(folder)
    book.refresh()
    return book.finished


def is_complete(folder: Path) -> bool:
    """Whether every row of the table of a download is in a shard that is done."""
    book = ShardBook(folder)
    book.refresh()
    return book.complete


def read_outcomes(folder: Path, columns: Sequence[str] = OUTCOME_COLUMNS) -> Iterator[pa.Table]:
    """What became of each row: the metadata of the shards that are done, one table a shard.

    Args:
        folder: Folder of a download, holding job.json.
        columns: Columns of the metadata.
    """
    book = ShardBook(folder)
    book.refresh()
    for number in book.finished:
        yield book.outcomes(number, columns)


def count_causes(status: Sequence[str], messages: Sequence[str | None]) -> dict[str, int]:
    """Failed rows by cause, most frequent first."""
    causes: Counter[str] = Counter()
    for (each, message), count in Counter(zip(status, messages, strict=True)).items():
        cause = classify(each, message)
        if cause is not None:
            causes[str(cause)] += count
    return dict(causes.most_common())


def shard_name(number: int, extension: str) -> str:
    """Name of a file of a shard: `tar`, `parquet`, or `json` for its statistics."""
    ending = "_stats.json" if extension == "json" else f".{extension}"
    return f"{number:0{_SHARD_DIGITS}d}{ending}"


def _version(entry: dict[str, Any]) -> str:
    names = ("mtime", "ETag", "etag", "LastModified", "created")
    return str(next((entry[name] for name in names if name in entry), ""))


@lru_cache(maxsize=2)
def _row_ids(part: Path, _changed_ns: int) -> pa.ChunkedArray:
    return pq.read_table(part, columns=["row_id"])["row_id"]
