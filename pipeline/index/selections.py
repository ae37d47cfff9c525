"""Selections on the disk: `INDEX/selections/NAME.arrow`, ascending rows and how they were chosen.

The file is one Arrow record batch of one uint32 column; its schema's metadata says in JSON from
which index the rows are, by which options they were chosen and what each condition dropped. There
is no date in it: the same command on the same index writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.durable import sync_folder
from tessera.pipeline.index import Index
from tessera.pipeline.index.arrow_file import column_view, write_batch

SELECTIONS_DIR = "selections"
FORMAT_VERSION = 1
_SCHEMA = pa.schema([pa.field("row", pa.uint32(), nullable=False)])
_METADATA = b"tessera.selection"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selection:
    """The rows of an index that a selection keeps."""

    name: str
    """What it is called after the `@`."""
    fingerprint: str
    """SHA-256 (hex) over the index's fingerprint and the rows: part of a run's identity."""
    rows: NDArray[np.uint32] = field(repr=False)
    """[S] rows of the index, ascending, at least one; a view of the mapped file."""
    provenance: dict[str, Any] = field(repr=False)
    """Options, command and counts, as they were stored."""

    @property
    def num_samples(self) -> int:
        """S."""
        return len(self.rows)


def check_name(name: str) -> None:
    """Make sure that a selection can have this name.

    Raises:
        ValueError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a selection cannot be called {name!r}: use letters, digits, '.', '_' and '-', and "
            "begin with a letter or a digit"
        )


def write_selection(
    index: Index, name: str, rows: NDArray[np.integer], provenance: dict[str, Any]
) -> Selection:
    """Store a selection; an older one of the same name is replaced at once.

    Args:
        index: whose rows they are.
        name: letters, digits, `.`, `_`, `-`.
        rows: [S] ascending, each once.
        provenance: plain JSON values; `command` holds the words that make it again, the first one
            of which stands right behind the index.

    Raises:
        ValueError: the name cannot be used, or the rows are none, not ascending, or not rows of
            this index.
    """
    check_name(name)
    stored = np.ascontiguousarray(rows, dtype=np.uint32)
    _check_rows(stored, index, f"the selection {name!r}")
    facts = {
        "format_version": FORMAT_VERSION,
        "index_fingerprint": index.fingerprint,
        "num_index_samples": index.num_samples,
        "num_samples": len(stored),
        "fingerprint": _fingerprint(index, stored),
        **provenance,
    }
    schema = _SCHEMA.with_metadata({_METADATA: json.dumps(facts).encode()})
    folder = index.directory / SELECTIONS_DIR
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.arrow"
    partial = folder / f".{path.name}.partial-{os.getpid()}"
    try:
        write_batch(partial, pa.RecordBatch.from_arrays([pa.array(stored)], schema=schema))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(folder)
    return open_selection(index, name)


def open_selection(index: Index, name: str) -> Selection:
    """Map a selection and make sure that it belongs to this index.

    Raises:
        FileNotFoundError: there is none of this name; the message lists those there are.
        ValueError: it is damaged, or was made from another state of the index; the message names
            the command that makes it again.
    """
    path = index.directory / SELECTIONS_DIR / f"{name}.arrow"
    if not _NAME.fullmatch(name) or not path.is_file():
        known = ", ".join(list_selections(index)) or "none"
        command = f"python tools/select_samples.py {index.directory} --out NAME --where EXPRESSION"
        raise FileNotFoundError(
            f"the index {index.directory} has no selection {name!r}; it has: {known}. Make one "
            f"with `{command}`"
        )
    rows, facts = _read(path)
    if facts["index_fingerprint"] != index.fingerprint:
        raise ValueError(
            f"the selection {path} is of the index {facts['index_fingerprint'][:16]}, but "
            f"{index.directory} is {index.fingerprint[:16]} now: make it again with "
            f"`{_command(index, name, facts)}`"
        )
    _check_rows(rows, index, str(path))
    if _fingerprint(index, rows) != facts["fingerprint"]:
        raise ValueError(
            f"{path} is damaged: its rows are not those that were stored; make it again with "
            f"`{_command(index, name, facts)}`"
        )
    return Selection(name=name, fingerprint=facts["fingerprint"], rows=rows, provenance=facts)


def provenance_of(index: Index, name: str) -> dict[str, Any]:
    """How a selection was chosen, also where it is of an earlier state of the index.

    Raises:
        ValueError: its file is damaged.
    """
    return _read(index.directory / SELECTIONS_DIR / f"{name}.arrow")[1]


def is_stale(index: Index, facts: dict[str, Any]) -> bool:
    """Whether rows chosen so are of another state of the index, or of the selection they rest on.

    Args:
        index: as it is now.
        facts: from `provenance_of`.
    """
    if facts["index_fingerprint"] != index.fingerprint:
        return True
    base = facts.get("base")
    return bool(base) and (
        base["name"] not in list_selections(index)
        or provenance_of(index, base["name"])["fingerprint"] != base["fingerprint"]
    )


def list_selections(index: Index) -> list[str]:
    """Names of the selections stored with an index, sorted; some may be stale."""
    folder = index.directory / SELECTIONS_DIR
    return sorted(path.stem for path in folder.glob("*.arrow") if _NAME.fullmatch(path.stem))


def remove_selection(index: Index, name: str) -> None:
    """Remove a selection's file.

    Raises:
        FileNotFoundError: there is none of this name.
    """
    if name not in list_selections(index):
        known = ", ".join(list_selections(index)) or "none"
        raise FileNotFoundError(f"{index.directory} has no selection {name!r}; it has: {known}")
    (index.directory / SELECTIONS_DIR / f"{name}.arrow").unlink()


def _read(path: Path) -> tuple[NDArray[np.uint32], dict[str, Any]]:
    """Rows and facts of a file, checked for their form alone."""
    facts: dict[str, Any] = {}
    batch = None
    problem = "it is no selection"
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches == 1 and reader.schema.equals(_SCHEMA):
                batch = reader.get_batch(0)
                batch.validate(full=True)
                facts = json.loads((reader.schema.metadata or {}).get(_METADATA, b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = str(error).strip().split("\n", 1)[0]
    if facts and facts.get("format_version") != FORMAT_VERSION:
        problem = f"format version {facts.get('format_version')}, this code reads {FORMAT_VERSION}"
    elif batch is not None and {"index_fingerprint", "fingerprint"} <= facts.keys():
        return column_view(batch, "row"), facts
    raise ValueError(
        f"the selection {path} cannot be used ({problem}); remove it and make it again with "
        "tools/select_samples.py"
    )


def _check_rows(rows: NDArray[np.uint32], index: Index, what: str) -> None:
    if not len(rows):
        raise ValueError(f"{what} keeps no sample: nothing to train on or to evaluate")
    if not (rows[1:] > rows[:-1]).all():
        raise ValueError(f"{what} is damaged: its rows do not ascend")
    if rows[-1] >= index.num_samples:
        raise ValueError(
            f"{what} holds row {rows[-1]}, but {index.directory} has {index.num_samples} samples"
        )


def _fingerprint(index: Index, rows: NDArray[np.uint32]) -> str:
    digest = hashlib.sha256(f"tessera selection\0{index.fingerprint}\0".encode())
    digest.update(np.ascontiguousarray(rows).astype("<u4", copy=False).data)
    return digest.hexdigest()


def made_by(index: Index, selection: Selection) -> str:
    """The command line that makes a selection again."""
    return _command(index, selection.name, selection.provenance)


def _command(index: Index, name: str, facts: dict[str, Any]) -> str:
    base = facts.get("base") or {}
    reference = f"{index.directory}@{base['name']}" if base else str(index.directory)
    words = facts.get("command") or ["--out", name, "--where", "EXPRESSION"]
    return shlex.join(["python", "tools/select_samples.py", reference, *words])
