"""What other loaders need to serve the usable samples of an index: DALI's .idx, lists of keys."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from pipeline.durable import write_text
from pipeline.index import Index
from pipeline.indexing.options import ScanOptions
from pipeline.indexing.tar_walk import MemberGroup, TarError, group_members, walk_tar
from pipeline.storage import file_state, open_binary, stem_of

_DALI_VERSION = "v1.2"


def write_dali_indexes(
    index: Index, folder: Path, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> list[Path]:
    """Write the `.idx` files that `fn.readers.webdataset(index_paths=...)` takes.

    They list the usable samples alone, so that DALI's reader never meets another.

    Args:
        index: a data set whose shards have different names within each source.
        folder: gets one file for each shard, `NNNNN.idx` for `NNNNN.tar`; made if missing. Several
            sources have a folder each in it.
        progress: called with the shards done and the shards there are.

    Returns:
        The files, in the order of the shards.

    Raises:
        ValueError: two shards have the same name.
        OSError: a shard cannot be read.
    """
    several = len(index.source_names) > 1
    targets = [
        (folder / record.source if several else folder) / f"{stem_of(record.location)}.idx"
        for record in index.shards
    ]
    target, times = Counter(targets).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{times} shards are called {target.stem}.tar; index and write them apart")
    paths: list[Path] = []
    for number, (record, path) in enumerate(zip(index.shards, targets, strict=True)):
        keys = set(index.keys_in_shard(number))
        groups = _groups(record.location, index.scan_options)
        lines = [_dali_line(group) for group in groups if group.key in keys]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join([f"{_DALI_VERSION} {len(lines)}", *lines]) + "\n")
        paths.append(path)
        progress(number + 1, len(index.shards))
    return paths


def write_key_list(index: Index, path: Path) -> None:
    """Write the shard and the key of every usable sample, a line each with a tab between.

    Enough to filter any WebDataset reader by `sample["__url__"]` and `sample["__key__"]`. A shard
    is named by its file, and by its whole place if several have the same name.
    """
    names = [PurePosixPath(record.location).name for record in index.shards]
    if len(set(names)) < len(names):
        names = [record.location for record in index.shards]
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for number, name in enumerate(names):
            file.writelines(f"{name}\t{key}\n" for key in index.keys_in_shard(number))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _groups(location: str, options: ScanOptions) -> Iterator[MemberGroup]:
    size_bytes = file_state(location).size_bytes
    seen: set[str] = set()
    with open_binary(location) as file:
        try:
            members = walk_tar(file, size_bytes)
            for group in group_members(members, to_last_dot=options.key_to_last_dot):
                # Of a key that comes twice the first one is in the index.
                if group.cut_member is None and group.key not in seen:
                    seen.add(group.key)
                    yield group
        except TarError:
            # The index holds what lies before the fault.
            return


def _dali_line(group: MemberGroup) -> str:
    return " ".join(
        f"{suffix} {member.offset} {member.num_bytes} {member.name}"
        for suffix, member in group.members.items()
    )
