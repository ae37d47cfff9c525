"""Which shards are done: those whose statistics, metadata and tar tell the same story.

img2dataset calls a shard done when its `_stats.json` is there. It can be there for a shard that
lost rows, and a tar cut off by a kill reads well up to the cut. So every shard is checked against
the rows of the table that belong in it:

- the metadata holds exactly the row numbers of that part of the table;
- `count` and `successes` of the statistics are those of the metadata;
- the tar is whole, and holds picture and caption of each success, and of no other row.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import fsspec.core
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.dataset import Dataset, dataset

from tessera.pipeline.index.tar_walk import walk_tar
from tessera.tools.download.causes import classify
from tessera.tools.download.job import Job

_VERIFIED = "verified.jsonl"
_ENDINGS = (".tar", ".parquet", "_stats.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardState:
    """A shard that was checked."""

    shard_id: int
    files: list[list[Any]]  # bytes and time of change of its tar, metadata and statistics then
    problem: str | None = None  # what is wrong with it; None: it is done
    num_rows: int = 0  # rows of the table in it, failures too
    num_successes: int = 0  # pictures in it
    failures: dict[str, int] = field(default_factory=dict)  # failed rows by cause
    start_time: float = 0.0  # of its download, in seconds since the epoch
    end_time: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlace:
    """Where the rows of a shard lie in the table."""

    part: Path  # parquet part of the table
    first: int  # place in the part of the shard's first row
    num_rows: int  # the last shard of a part may be a short one


class ShardBook:
    """The shards of one job: which are done, which are wrong, which are missing.

    A check is not repeated while the files of the shard stay as they are, also not by the next
    process: what was found is kept in `verified.jsonl`.
    """

    def __init__(self, folder: Path) -> None:
        """Read the plan of a download.

        Raises:
            FileNotFoundError: no download was begun there.
        """
        self.job = Job.load(folder)
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
    def complete(self) -> bool:
        """Whether every row of the table is in a shard that is done."""
        return len(self.finished) == len(self.plan)

    def refresh(self) -> list[ShardState]:
        """Check shards that are new or changed since the last time, and return those."""
        found = self._listing()
        states, checked = {}, []
        for number in sorted(self.plan):
            names = [shard_file(number, ending) for ending in _ENDINGS]
            if names[-1] not in found:
                continue
            files = [found.get(name, [0, "missing"]) for name in names]
            known = self._states.get(number)
            if known is None or known.files != files:
                known = self._check(number, files)
                checked.append(known)
            states[number] = known
        self._states = states
        # It only saves time: on a full disk, clearing up must not fail for want of it.
        with suppress(OSError), self._kept.open("a", encoding="utf-8") as file:
            # A line cut off by a kill must not swallow this one.
            file.write("".join(f"\n{json.dumps(asdict(state))}\n" for state in checked))
        return checked

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
        found = self._listing()
        for state in moved:
            # Without statistics first: a kill in the middle must not leave a shard called done.
            tar, rows, stats = (shard_file(state.shard_id, ending) for ending in _ENDINGS)
            if found.pop(stats, None):
                self._files.rm(f"{self._root}/{stats}")
            self._files.makedirs(quarantine, exist_ok=True)
            for name in (tar, rows):
                if found.pop(name, None):
                    self._files.mv(f"{self._root}/{name}", self._free_name(quarantine, name))
            del self._states[state.shard_id]
        unfinished = self.plan.keys() - self.finished.keys()
        for name in sorted({shard_file(number, end) for number in unfinished for end in _ENDINGS}):
            if name in found:
                self._files.rm(f"{self._root}/{name}")
        if self._files.exists(f"{self._root}/_tmp"):
            self._files.rm(f"{self._root}/_tmp", recursive=True)
        return moved

    def metadata(self) -> Dataset:
        """The metadata of all shards that are done, one row for each of their rows of the table."""
        places = [f"{self._root}/{shard_file(number, '.parquet')}" for number in self.finished]
        return dataset(places, filesystem=self._files, format="parquet")

    def _listing(self) -> dict[str, list[Any]]:
        """Bytes and time of change or version of every file beside the shards, by name."""
        self._files.invalidate_cache(self._root)
        try:
            entries = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return {
            entry["name"].rsplit("/", 1)[-1]: [int(entry["size"] or 0), _version(entry)]
            for entry in entries
            if entry["type"] == "file"
        }

    def _free_name(self, folder: str, name: str) -> str:
        number, stem, extension = 0, *name.rsplit(".", 1)
        while self._files.exists(f"{folder}/{stem}-{number}.{extension}"):
            number += 1
        return f"{folder}/{stem}-{number}.{extension}"

    def _check(self, number: int, files: list[list[Any]]) -> ShardState:
        try:
            return self._checked(number, files)
        except (ValueError, KeyError, OSError, pa.ArrowException) as error:
            problem = f"{type(error).__name__}: {error}"
            return ShardState(shard_id=number, files=files, problem=problem)

    def _checked(self, number: int, files: list[list[Any]]) -> ShardState:
        stats = json.loads(
            self._files.cat_file(f"{self._root}/{shard_file(number, '_stats.json')}")
        )
        content = self._files.cat_file(f"{self._root}/{shard_file(number, '.parquet')}")
        # Python files that Arrow's threads read can abort a process as it ends: apache/arrow 50482.
        columns = ["row_id", "caption", "status", "error_message"]
        table = pq.read_table(pa.BufferReader(content), columns=columns, use_threads=False)
        rows, place = table.to_pylist(), self.plan[number]
        ids = _row_ids(place.part, place.part.stat().st_mtime_ns)
        expected = ids.slice(place.first, place.num_rows).to_pylist()
        if sorted(row["row_id"] for row in rows) != sorted(expected):
            raise ValueError(f"its metadata has {len(rows)} rows, not its {len(expected)}")
        outcomes = [(row, classify(row["status"], row["error_message"])) for row in rows]
        captions = {
            f"{row['row_id']:09d}": len((row["caption"] or "").encode())
            for row, cause in outcomes
            if cause is None
        }
        if (stats["count"], stats["successes"]) != (len(rows), len(captions)):
            raise ValueError(
                f"its statistics say {stats['count']} rows and {stats['successes']} successes, "
                f"its metadata {len(rows)} and {len(captions)}"
            )
        self._check_tar(number, files[0][0], captions)
        return ShardState(
            shard_id=number,
            files=files,
            num_rows=len(rows),
            num_successes=len(captions),
            failures=dict(Counter(str(cause) for _, cause in outcomes if cause)),
            start_time=float(stats["start_time"]),
            end_time=float(stats["end_time"]),
        )

    def _check_tar(self, number: int, num_bytes: int, captions: dict[str, int]) -> None:
        """Hold a tar to the lengths of the captions of all successes, by key."""
        pictures: set[str] = set()
        texts: dict[str, int] = {}
        with self._files.open(f"{self._root}/{shard_file(number, '.tar')}", "rb") as file:
            for member in walk_tar(file, num_bytes):
                key, _, extension = member.name.partition(".")
                if member.num_bytes and extension == "jpg" and key not in pictures:
                    pictures.add(key)
                elif extension == "txt" and key not in texts:
                    texts[key] = member.num_bytes
                elif extension != "json":  # which the first edition wrote
                    raise ValueError(f"its tar holds {member.name} empty, twice or without reason")
        if pictures != captions.keys():
            raise ValueError(f"{len(pictures)} pictures in its tar, {len(captions)} successes")
        if texts != captions:
            raise ValueError("captions in its tar are missing or differ from its metadata")

    def _load(self) -> dict[int, ShardState]:
        states: dict[int, ShardState] = {}
        if self._kept.is_file():
            for line in self._kept.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, TypeError):  # a line cut off by a kill
                    state = ShardState(**json.loads(line))
                    states[state.shard_id] = state
        return {number: state for number, state in states.items() if number in self.plan}


def plan_shards(table: Path, samples_per_shard: int) -> dict[int, ShardPlace]:
    """Which rows img2dataset puts into which shard: it begins a new one with every part."""
    plan: dict[int, ShardPlace] = {}
    for part in sorted(table.glob("*.parquet")):
        num_rows = pq.read_metadata(part).num_rows
        for first in range(0, num_rows, samples_per_shard):
            rows = min(samples_per_shard, num_rows - first)
            plan[len(plan)] = ShardPlace(part=part, first=first, num_rows=rows)
    return plan


def shard_file(number: int, ending: str) -> str:
    """Name of a file of a shard: `.tar`, `.parquet`, or `_stats.json`."""
    return f"{number:05d}{ending}"


def _version(entry: dict[str, Any]) -> str:
    names = ("mtime", "ETag", "etag", "LastModified", "created")
    return str(next((entry[name] for name in names if name in entry), ""))


@lru_cache(maxsize=2)
def _row_ids(part: Path, _changed_ns: int) -> pa.ChunkedArray:
    return pq.read_table(part, columns=["row_id"])["row_id"]
