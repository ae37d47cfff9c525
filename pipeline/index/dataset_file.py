"""`dataset.json` beside shards: what their samples hold, for tools/index_shards.py to follow.

{"format": 1, "captions": "json:captions", "columns": ["file_name"], "file_name": "file_name"}
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tessera.pipeline.durable import write_text
from tessera.pipeline.storage import read_text

DATASET_FILE = "dataset.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFile:
    """What the samples of a folder of shards hold."""

    captions: str = "txt"
    """What `tools/index_shards.py --captions` is to be told."""
    columns: tuple[str, ...] = ()
    """Fields of the samples' json, or of the parquet beside each shard, that are worth keeping, as
    `--columns` takes them: `NAME`, or `NAME:float` for numbers."""
    file_name: str = ""
    """The one that holds the name of the picture's file in the source; empty where pictures had
    none."""

    def write(self, folder: Path) -> None:
        """Write the file into a folder of shards."""
        content = {"format": FORMAT, **asdict(self)}
        write_text(folder / DATASET_FILE, json.dumps(content, indent=1) + "\n")


def read_dataset_file(folder: str) -> DatasetFile | None:
    """The file of a folder of shards, which may be a URL; None where there is none.

    Raises:
        ValueError: it is damaged, or of another format.
        OSError: it cannot be asked for.
    """
    place = f"{folder.rstrip('/')}/{DATASET_FILE}"
    try:
        text = read_text(place)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no UTF-8 ({error}): repair or remove it") from error
    try:
        content = json.loads(text)
        found = content.get("format")
        if found == FORMAT:
            known = {each.name for each in fields(DatasetFile)}
            kept = {name: value for name, value in content.items() if name in known}
            columns = tuple(map(str, kept.pop("columns", ())))
            return DatasetFile(columns=columns, **{n: str(value) for n, value in kept.items()})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{place} is damaged ({error}): repair or remove it") from error
    raise ValueError(
        f"{place} has format {found!r}, and this code reads {FORMAT}: name --captions and "
        "--columns and remove it, or use the code that made it"
    )
