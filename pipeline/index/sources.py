"""Which shards are of which source, from what a person names: FOLDER, FILE or NAME=FOLDER."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.pipeline.index.dataset_file import DATASET_FILE, DatasetFile, read_dataset_file
from tessera.pipeline.storage import folder_of, list_shards, normalised

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)=(?P<place>.+)", re.DOTALL)
_NO_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Shards and what they are of."""

    names: dict[str, str]
    """Source of each shard by its location."""
    folders: tuple[str, ...]
    """Where they lie, each once."""


def find_sources(places: Sequence[str]) -> Sources:
    """List the shards of some places.

    A folder is a source, and so are tar files of one folder; a name in front, as in `cc3m=FOLDER`,
    names it, and places of the same name are one source. Without a name it is that of the folder,
    with those above it where that is not enough to tell sources apart.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: a place holds no shards, or a shard is of two sources.
        OSError: a remote folder cannot be listed.
    """
    shards: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    for place in places:
        match = _NAMED.fullmatch(place)
        if match and not Path(place).exists():
            name, place = match["name"], match["place"]
        else:
            name = ""
        found = list_shards(place)
        single = found == [normalised(place)]
        folder = f"{name}={folder_of(found[0]) if single else normalised(place)}"
        shards.setdefault(folder, []).extend(found)
        given[folder] = name
    unnamed = [folder.removeprefix("=") for folder, name in given.items() if not name]
    usual = _distinct_names(unnamed, {name for name in given.values() if name})
    names: dict[str, str] = {}
    for folder, found in shards.items():
        name = given[folder] or usual[folder.removeprefix("=")]
        for location in found:
            if names.setdefault(location, name) != name:
                raise ValueError(f"{location} is of two sources, {names[location]} and {name}")
    return Sources(names=names, folders=tuple(dict.fromkeys(map(folder_of, names))))


def _distinct_names(folders: Iterable[str], taken: set[str]) -> dict[str, str]:
    """A name for each folder: its last part, or as many parts as tell it from the others."""
    parts = {folder: [p for p in re.split(r"[/\\]+", folder) if p] for folder in folders}
    names: dict[str, str] = {}
    length = 1
    while waiting := [folder for folder in parts if folder not in names]:
        tries: dict[str, list[str]] = defaultdict(list)
        for folder in waiting:
            name = _NO_NAME.sub("_", "-".join(parts[folder][-length:])).strip("_") or "shards"
            tries[name].append(folder)
        longest = all(length >= len(parts[folder]) for folder in waiting)
        for name, same in tries.items():
            free = name not in taken and name not in names.values()
            if longest or (len(same) == 1 and free):
                for number, folder in enumerate(same):
                    names[folder] = name if free and not number else f"{name}-{len(names)}"
        length += 1
    return names


def described(folders: Iterable[str]) -> DatasetFile | None:
    """What the `dataset.json` of some folders of shards say; None if there is none.

    Raises:
        ValueError: they do not agree, or one is damaged.
        OSError: one cannot be asked for.
    """
    found = {folder: read_dataset_file(folder) for folder in folders}
    captions = {f: each.captions if each else "txt" for f, each in found.items()}
    if len(set(captions.values())) > 1:
        one, other = sorted(captions.items(), key=lambda each: each[1])[:: len(captions) - 1]
        raise ValueError(
            f"{DATASET_FILE} of {one[0]} takes captions from {one[1]}, {other[0]} has them in "
            f"{other[1]}: name --captions for all, or index them apart"
        )
    there = [each for each in found.values() if each]
    if not there:
        return None
    columns = tuple(dict.fromkeys(column for each in there for column in each.columns))
    return DatasetFile(captions=there[0].captions, columns=columns)
