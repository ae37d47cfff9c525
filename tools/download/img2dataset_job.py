"""One run of img2dataset: what it is asked to do, and the call that does it.

img2dataset and what it needs are imported by `run_job` only, so that a job can be made and read
without them.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import ipaddress
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tools.download.fetch import FetchLimits, check_certificates

USER_AGENT = "Mozilla/5.0 (compatible; TesseraDownloader/0.1)"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything that one run of img2dataset depends on."""

    table: str
    """Folder of parquet parts with the columns row_id, url and caption."""
    shards: str
    """Folder or fsspec URL that the shards are written to."""
    samples_per_shard: int = 10_000
    """Rows a shard."""
    processes: int
    """Worker processes, one shard each at a time."""
    threads: int = 64
    """Fetches at the same time in one process."""
    image_size: int = 256
    """Pixels of the short side; larger pictures are made smaller, no picture is made larger."""
    encode_quality: int = 95
    """Quality of the stored JPEG, 1 to 100."""
    min_image_size: int = 64
    """Pixels that the short side must have."""
    max_aspect_ratio: float = 5.0
    """Long side divided by short side, at most."""
    max_pixels: int = 100_000_000
    """Pixels of a picture by its header, at most; larger ones are not decoded."""
    timeout_s: float = 10.0
    """Seconds that one wait on the network may take."""
    deadline_s: float = 30.0
    """Seconds that one try may take, redirects included."""
    max_bytes: int = 64 * 1024 * 1024
    """Bytes of content at most, both as sent and unpacked."""
    retries: int = 2
    """Further tries after a failure that may pass."""
    allow_addresses: tuple[str, ...] = ()
    """Networks (CIDR) that may be fetched from although they are not public."""
    user_agent: str = USER_AGENT
    """What the downloader calls itself."""
    respect_opt_out: bool = True
    """Leave out what its server's headers reserve (X-Robots-Tag, TDM-Reservation)."""
    distributor: Literal["multiprocessing", "ray", "pyspark"] = "multiprocessing"
    """img2dataset's way to spread the shards over processes or machines."""
    extra_columns: tuple[str, ...] = ()
    """Further columns of the table that go into the shards' parquet and json."""

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "processes", "threads", "image_size", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {self.max_bytes}")
        if not 1 <= self.encode_quality <= 100:
            raise ValueError(f"encode_quality must be 1 to 100, got {self.encode_quality}")
        if not (self.timeout_s > 0 and self.deadline_s > 0):
            raise ValueError("timeout_s and deadline_s must be above 0")
        if self.retries < 0 or self.min_image_size < 0:
            raise ValueError("retries and min_image_size must not be negative")
        if not self.max_aspect_ratio >= 1:
            raise ValueError(f"max_aspect_ratio must be at least 1, got {self.max_aspect_ratio}")
        if self.distributor not in ("multiprocessing", "ray", "pyspark"):
            raise ValueError(
                f"distributor must be multiprocessing, ray or pyspark, got {self.distributor!r}"
            )
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise ValueError("user_agent must be printable ASCII on one line")
        for network in self.allow_addresses:
            ipaddress.ip_network(network)

    def to_json(self) -> str:
        """The job as JSON, for the process that runs it."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job that `to_json` wrote.

        Raises:
            ValueError: it is not JSON, or not a job.
        """
        fields: dict[str, Any] = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise ValueError(f"not a download job: unknown fields {sorted(unknown)}")
        for name in ("allow_addresses", "extra_columns"):
            if name in fields:
                fields[name] = tuple(fields[name])
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a download job: {error}") from None


def run_job(job: Job) -> None:
    """Download every shard that is not finished; returns when all are, or were given up.

    Raises:
        ValueError: the job cannot be run as it is asked for.
        FileNotFoundError: the table has no parquet parts.
        RuntimeError: img2dataset gave up on some shards; running the job again goes on with them.
    """
    expected = num_shards(job)
    _check_distributor(job.distributor)
    check_certificates()
    _announce(job)
    _prepare_process(job)
    # `import img2dataset.main` yields the function of that name, not the module.
    main: Any = importlib.import_module("img2dataset.main")
    worker = importlib.import_module("tools.download.worker")
    upright = importlib.import_module("tools.download.upright")
    resizer = upright.UprightResizer(
        image_size=job.image_size,
        encode_quality=job.encode_quality,
        min_image_size=job.min_image_size,
        max_aspect_ratio=job.max_aspect_ratio,
        max_pixels=job.max_pixels,
    )
    limits = FetchLimits(
        timeout_s=job.timeout_s,
        deadline_s=job.deadline_s,
        max_bytes=job.max_bytes,
        retries=job.retries,
        user_agent=job.user_agent,
        respect_opt_out=job.respect_opt_out,
        allow_addresses=job.allow_addresses,
    )

    def downloader(**options: Any) -> object:
        options["resizer"] = resizer
        return worker.TesseraDownloader(limits=limits, **options)

    main.Downloader = downloader
    main.download(
        url_list=job.table,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        save_additional_columns=["row_id", *job.extra_columns],
        output_folder=job.shards,
        output_format="webdataset",
        number_sample_per_shard=job.samples_per_shard,
        oom_shard_count=5,
        processes_count=job.processes,
        thread_count=job.threads,
        distributor=job.distributor,
        image_size=job.image_size,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=job.encode_quality,
        compute_hash="sha256",
        # The EXIF block would tell to turn pictures that are stored upright.
        extract_exif=False,
        incremental_mode="incremental",
        enable_wandb=False,
    )
    finished = _num_finished(job.shards)
    if finished < expected:
        raise RuntimeError(
            f"{expected - finished} of {expected} shards were not finished; what went wrong is "
            "printed above. The same command goes on with them"
        )


def num_shards(job: Job) -> int:
    """How many shards the table makes: img2dataset begins a new shard with each part.

    Raises:
        FileNotFoundError: the table has no parquet parts.
        ValueError: a part lacks a column, or has one that cannot be written as JSON.
    """
    import fsspec
    import pyarrow.parquet as pq

    system, folder = fsspec.core.url_to_fs(job.table)
    parts = sorted(system.glob(folder.rstrip("/") + "/*.parquet"))
    if not parts:
        raise FileNotFoundError(f"there are no parquet parts in {job.table}")
    count = 0
    for part in parts:
        with system.open(part, "rb") as file:
            parquet = pq.ParquetFile(file)
            _check_columns(job, part, parquet.schema_arrow)
            count += -(-parquet.metadata.num_rows // job.samples_per_shard)
    return count


def _check_columns(job: Job, part: str, schema: Any) -> None:
    import pyarrow as pa

    for name in ("row_id", "url", "caption", *job.extra_columns):
        if name not in schema.names:
            raise ValueError(f"{part} has no column {name}; it has {', '.join(schema.names)}")
    for name in job.extra_columns:
        kind = schema.field(name).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
        if not any(is_kind(kind) for is_kind in (*plain, *texts)):
            raise ValueError(
                f"the column {name} is {kind}, which the shards' json cannot hold: "
                "leave it out, or write it as text or numbers"
            )


def _check_distributor(name: str) -> None:
    """img2dataset says nothing, and does nothing, when its distributor is not installed."""
    if name != "multiprocessing" and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"--distributor {name} needs the package {name}, which is not installed: "
            f"`pip install {name}`, or use --distributor multiprocessing"
        )


def _announce(job: Job) -> None:
    if job.allow_addresses:
        networks = ", ".join(job.allow_addresses)
        print(f"NOTE: addresses in {networks} are fetched from although they are not public")
    proxies = [name for name in _PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    if proxies:
        print(
            f"NOTE: {', '.join(proxies)} is not used: behind a proxy, the addresses that are "
            "fetched from could not be checked"
        )


def _prepare_process(job: Job) -> None:
    """Settings that spawned workers inherit: the environment and `sys.path`."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    # The codecs' own limit, should a header say less than what is decoded.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(job.max_pixels)
    os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
    checkout = str(Path(__file__).resolve().parents[2])
    stand_in = str(Path(__file__).resolve().parent / "without_wandb")
    sys.path[:0] = [place for place in (stand_in, checkout) if place not in sys.path]
    # For workers of Ray and Spark on this machine, which are not given `sys.path`.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (stand_in, checkout, inherited)))


def _num_finished(shards: str) -> int:
    import fsspec

    system, folder = fsspec.core.url_to_fs(shards, use_listings_cache=False)
    return len(system.glob(folder.rstrip("/") + "/*_stats.json"))
