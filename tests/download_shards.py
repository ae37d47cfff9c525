"""Shards as a download writes them, made without it, whole or with a fault."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tessera.tools.download.job import Job
from tessera.tools.download.shards import ShardBook, shard_file

FAILS = {
    3: ("failed_to_download", "not_found: HTTP 404"),
    5: ("failed_to_download", "timeout: no answer"),
    7: ("failed_to_resize", "damaged_image: cut off"),
}
"""Outcome of the rows whose id ends in this digit; the others succeed."""


def caption_of(row_id: int) -> str:
    """Caption of a row: with what goes wrong easily, and empty once."""
    return "" if row_id == 1 else f'caption {row_id}, "quoted" \N{SNOWMAN}'


def picture_of(row_id: int) -> bytes:
    """What stands in for a JPEG."""
    return b"\xff\xd8" + bytes([row_id % 251]) * (100 + row_id * 37 % 1500) + b"\xff\xd9"


def make_table(folder: Path, part_rows: tuple[int, ...] = (25, 13)) -> None:
    """Parquet parts and their summary; row ids run backwards, as a table's order is its own."""
    folder.mkdir(parents=True)
    first = sum(part_rows)
    for number, num_rows in enumerate(part_rows):
        ids = list(range(first - 1, first - 1 - num_rows, -1))
        first -= num_rows
        columns = {
            "row_id": pa.array(ids, pa.int64()),
            "url": [f"http://host{i % 4}.example/{i}.jpg" for i in ids],
            "caption": [caption_of(i) for i in ids],
        }
        pq.write_table(pa.table(columns), folder / f"part-{number:05d}.parquet")


def make_download(folder: Path, **changes: object) -> Job:
    """A table and a job for it, in shards of ten rows: 10, 10, 5 of one part, 10, 3 of the next."""
    make_table(folder / "table")
    values = {
        "table": str(folder / "table"),
        "shards": str(folder / "shards"),
        "samples_per_shard": 10,
        "processes": 1,
        "threads": 4,
        "deadline_s": 0.5,
        **changes,
    }
    job = Job(**values)  # type: ignore[arg-type]
    (folder / "shards").mkdir()
    (folder / "job.json").write_text(job.to_json(), encoding="utf-8")
    return job


def write_shard(folder: Path, number: int, fault: str = "") -> None:
    """Write one shard of a download, with a fault if one is named."""
    book = ShardBook(folder)
    place = book.plan[number]
    rows = pq.read_table(place.part).slice(place.first, place.num_rows).to_pylist()
    root = Path(book.job.shards)
    for row in rows:
        status, message = FAILS.get(row["row_id"] % 10, ("success", None))
        row |= {"key": f"{row['row_id']:09d}", "status": status, "error_message": message}
        side = None if message else 100 + row["row_id"]
        row |= {"width": side, "height": side, "original_width": side, "original_height": side}
        row["sha256"] = None if message else f"{row['row_id'] % 9}" * 64
    kept = rows[1:] if fault == "a row is missing" else rows
    successes = [row for row in kept if row["status"] == "success"]
    members = successes[1:] if fault == "a sample is missing" else successes
    tar_path = root / shard_file(number, ".tar")
    _write_tar(tar_path, members, fault)
    if fault == "the tar is cut":
        with tar_path.open("r+b") as file:
            file.truncate(tar_path.stat().st_size - 10240)
    table = pa.Table.from_pylist(kept)
    pq.write_table(table, root / shard_file(number, ".parquet"))
    stats = {"count": len(rows), "successes": len(successes), "start_time": 5.0, "end_time": 9.0}
    if fault != "no statistics":
        text = "" if fault == "statistics are empty" else json.dumps(stats)
        (root / shard_file(number, "_stats.json")).write_text(text, encoding="utf-8")


def _write_tar(path: Path, rows: list[dict[str, object]], fault: str) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            row_id = int(str(row["row_id"]))
            caption = "another one" if fault == "a caption differs" else str(row["caption"])
            for extension, data in (
                ("jpg", picture_of(row_id)),
                ("txt", caption.encode()),
            ):
                info = tarfile.TarInfo(f"{row['key']}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
