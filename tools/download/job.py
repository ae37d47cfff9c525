"""The options of a download, each declared once: its default, its flag and its help text.

`Job` holds what the shards depend on; it is kept in job.json. `add_options` makes a command line
of any such dataclass. Nothing here needs more than Python, so `--help` works in any environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

JOB_FILE = "job.json"
_CHANGEABLE = frozenset(
    {"allow_addresses", "deadline_s", "distributor", "per_host", "processes", "retries", "threads"}
    | {"timeout_s", "user_agent"}
)


def option(default: Any, text: str, **about: Any) -> Any:
    """A field of a dataclass that a flag sets.

    Args:
        default: a boolean makes a flag without a value, an empty tuple one that may be repeated.
        text: for --help.
        about: `flag`, where it is not the field's name; `least` value (1, if not given); `choices`.
    """
    return field(default=default, metadata={"text": text, "least": 1, **about})


def _flag(each: dataclasses.Field[Any]) -> str:
    return each.metadata.get("flag") or f"--{each.name.replace('_', '-')}"


def add_options(parser: Any, kind: type, *, names: Iterable[str] = (), unset: bool = False) -> None:
    """Add the flags of a dataclass, or of some of its fields, to a parser or a group of one.

    With `unset`, None is the default of all.
    """
    hints = get_type_hints(kind)
    for each in fields(kind):
        about = each.metadata
        if not about or (names and each.name not in names):
            continue
        given: dict[str, Any] = {"dest": each.name, "default": None if unset else each.default}
        given["help"] = about["text"]
        if isinstance(each.default, bool):
            given["action"] = "store_false" if each.default else "store_true"
        elif each.default == ():
            given |= {"action": "append", "default": []}
        else:
            kinds = {hints[each.name], *get_args(hints[each.name])}
            given["type"] = next((k for k in (int, float) if k in kinds), str)
            given["choices"] = about.get("choices")
            if given["default"] is not None:
                given["help"] += " (default: %(default)s)"
        parser.add_argument(_flag(each), **given)


def from_arguments(kind: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of a dataclass's flags, as `add_options` had them parsed."""
    values = {each.name: getattr(arguments, each.name) for each in fields(kind) if each.metadata}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that are held to the limits that they declare."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, about = getattr(self, each.name), each.metadata
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if about and number and not value >= about["least"]:
                raise ValueError(f"{_flag(each)} must be at least {about['least']}, got {value}")


@dataclass(frozen=True, kw_only=True)
class PictureOptions(Options):
    """Which pictures are stored, and how."""

    image_size: int = option(256, "pixels of a stored picture's short side; none is enlarged")
    encode_quality: int = option(95, "of the stored JPEG, 1 to 100", flag="--quality")
    min_image_size: int = option(
        64, "pictures with a shorter short side are left out, pixels", least=0
    )
    max_aspect_ratio: float = option(5.0, "longer pictures are left out: long side by short side")
    max_pixels: int = option(100_000_000, "larger pictures, by their header, are not decoded")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encode_quality > 100:
            raise ValueError(f"--quality must be 1 to 100, got {self.encode_quality}")


@dataclass(frozen=True, kw_only=True)
class FetchLimits(Options):
    """What one fetch may take, and how the downloader names itself."""

    threads: int = option(64, "fetches at the same time in each process")
    per_host: int = option(32, "fetches from one host at the same time in each process")
    timeout_s: float = option(
        10.0, "seconds for one wait on the network", flag="--timeout", least=0.001
    )
    deadline_s: float = option(
        30.0, "seconds for one try with its redirects", flag="--deadline", least=0.001
    )
    max_bytes: int = option(64 << 20, "of one picture, as sent and unpacked")
    retries: int = option(2, "further tries where they can help", least=0)
    user_agent: str = option(
        "Mozilla/5.0 (compatible; TesseraDownloader/0.2)", "name that the downloader gives itself"
    )
    allow_addresses: tuple[str, ...] = option(
        (),
        "network (CIDR) that may be fetched from although it is not public, without a limit per "
        "host; may be repeated",
        flag="--allow-address",
    )
    respect_opt_out: bool = option(
        True,
        "store pictures that their servers reserve (X-Robots-Tag, TDM-Reservation) too",
        flag="--ignore-opt-out",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise ValueError("--user-agent must be printable ASCII on one line")
        for network in self.allow_addresses:
            ipaddress.ip_network(network)


@dataclass(frozen=True, kw_only=True)
class Job(FetchLimits, PictureOptions):
    """Everything that the shards of a download depend on."""

    table: str  # folder of parquet parts with the columns row_id, url and caption
    shards: str  # folder or fsspec URL that the shards are written to
    extra_columns: tuple[str, ...] = ()  # of the table, which go into the shards' parquet
    samples_per_shard: int = option(10_000, "rows tried for one shard")
    processes: int = option(0, "worker processes; 0: one for each core", least=0)
    distributor: str = option(
        "multiprocessing",
        "how the shards are spread; ray and pyspark spread them over machines",
        choices=("multiprocessing", "ray", "pyspark"),
    )

    def to_json(self) -> str:
        """The job as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def load(cls, folder: Path) -> Job:
        """The job of a download folder.

        Raises:
            FileNotFoundError: no download was begun there.
            ValueError: its file is damaged.
        """
        path = folder / JOB_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no {JOB_FILE}: no download was begun there")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            for name in ("allow_addresses", "extra_columns"):
                values[name] = tuple(values.get(name, ()))
            return cls(**values)
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not the job of a download: {error}") from None

    def check_same(self, folder: Path) -> None:
        """Refuse to resume a download in another way than it was begun.

        Raises:
            ValueError: the folder holds a download with other options; the text names them.
        """
        if not (folder / JOB_FILE).exists():
            return
        before, now = (dataclasses.asdict(each) for each in (Job.load(folder), self))
        differences = [
            f"{name} was {before[name]!r}, now {value!r}"
            for name, value in now.items()
            if name not in _CHANGEABLE and before[name] != value
        ]
        if differences:
            raise ValueError(
                f"{folder} was begun with other options ({'; '.join(differences)}): "
                "give the same ones, or another folder"
            )
