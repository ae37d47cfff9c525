"""New captions as JSON lines that only grow, and beside them what made them.

    rewrites.jsonl   {"key": "000000017", "caption": ["two dogs run on the beach"]}
                     {"key": "000000018", "caption": [], "fault": "copy"}
    rewrites.json    index, model, prompt, settings

Lines stand in the order of the samples, so their number says where to go on. tools/add_captions.py
reads the file; a sample without a caption keeps its original.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tessera.pipeline.durable import sync_folder, write_text
from tessera.pipeline.file_lock import FileLock, HeldError
from tessera.pipeline.index.dataset import Dataset

_KEYS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A sample's line."""

    key: str
    """Of the sample."""
    caption: list[str]
    """One text, or none."""
    fault: str | None = None
    """Why there is none."""
    description: str = ""
    """What a vision-language model said; not written if empty."""

    def line(self) -> str:
        """The line, with its end."""
        fields: dict[str, Any] = {"key": self.key, "caption": self.caption}
        fields |= {"fault": self.fault} if self.fault else {}
        fields |= {"description": self.description} if self.description else {}
        return json.dumps(fields, ensure_ascii=False) + "\n"


class CaptionFile:
    """The output of a run, new or taken up again; one process at a time has it open."""

    def __init__(
        self,
        path: Path,
        dataset: Dataset,
        identity: dict[str, Any],
        environment: dict[str, Any],
        block_size: int,
    ) -> None:
        """Open the file and find out what is done.

        Whole blocks stay; what a crash left behind them is cut off.

        Args:
            path: ends in `.jsonl`; the record lies beside it as `.json`.
            dataset: the samples that lines belong to.
            identity: what decides the captions. A file made with another one is refused.
            environment: recorded when the file is begun, never compared.
            block_size: samples that are stored together.

        Raises:
            ValueError: the file is not this run's, is damaged, or another process has it open.
            OSError: it cannot be written.
        """
        if path.suffix != ".jsonl":
            raise ValueError(f"--out {path}: the name must end in .jsonl")
        self.path = path
        self.block_size = block_size
        self.counts: Counter[str] = Counter()
        """Samples without a caption, by fault."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # JSON turns tuples into lists; compare what can be read back.
        _check_record(path, json.loads(json.dumps(identity)), environment)
        self._file = path.open("a+b")
        try:
            self._lock = FileLock(self._file)
        except HeldError as error:
            msg = f"{path} is being written by another process{error.remedy}"
            raise ValueError(msg) from None
        try:
            self._take_up(dataset)
        except BaseException:
            self._lock.close()
            raise
        sync_folder(path.parent)

    @property
    def num_done(self) -> int:
        """Samples that are stored."""
        return self._num_done

    def append(self, rows: Sequence[Row]) -> None:
        """Store a block; it is on the disk when this returns.

        Raises:
            OSError: it could not be written.
        """
        self._file.write("".join(row.line() for row in rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._num_done += len(rows)
        self.counts.update(row.fault for row in rows if row.fault)

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the file."""
        self._lock.close()

    def _take_up(self, dataset: Dataset) -> None:
        faults, ends = _read_lines(self.path, dataset)
        whole = len(faults) == dataset.num_samples
        self._num_done = len(faults) if whole else len(faults) // self.block_size * self.block_size
        self._file.truncate(ends[self._num_done])
        self.counts.update(fault for fault in faults[: self._num_done] if fault)


def _check_record(path: Path, identity: dict[str, Any], environment: dict[str, Any]) -> None:
    record_path = path.with_suffix(".json")
    if not record_path.exists():
        if path.exists() and path.stat().st_size:
            msg = f"{path} has no {record_path.name} beside it, so nobody knows what made it"
            raise ValueError(f"{msg}; give another --out")
        record = {**identity, "environment": environment}
        write_text(record_path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        found = json.loads(record_path.read_text(encoding="utf-8"))
        found.pop("environment")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{record_path} is damaged ({error!r}); give another --out") from error
    if found != identity:
        other = sorted(_differing(found, identity))
        raise ValueError(
            f"{path} was made with another {', '.join(other)}: give another --out, or the same "
            f"settings to go on ({record_path} lists them)"
        )


def _differing(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name in one.keys() | other.keys():
        mine, theirs = one.get(name), other.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            names += _differing(mine, theirs, f"{prefix}{name}.")
        elif mine != theirs:
            names.append(prefix + name)
    return names


def _read_lines(path: Path, dataset: Dataset) -> tuple[list[str | None], list[int]]:
    """The fault of each complete line, and where line k starts; the last entry is their end."""
    faults: list[str | None] = []
    ends = [0]
    keys: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            if number % _KEYS_AT_ONCE == 0:
                keys = dataset.index.keys(dataset.sample_ids(number, number + _KEYS_AT_ONCE))
            faults.append(_fault_in(line, keys, number, path))
            ends.append(ends[-1] + len(line))
    return faults, ends


def _fault_in(line: bytes, keys: Sequence[str], number: int, path: Path) -> str | None:
    try:
        row = json.loads(line)
        if row["key"] == keys[number % _KEYS_AT_ONCE]:
            return row.get("fault")
        found = f"it is of sample {row['key']!r}"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        found = repr(error)
    msg = f"{path}, line {number + 1} does not belong there: {found}"
    raise ValueError(f"{msg}; cut the file before that line to go on, or give another --out")
