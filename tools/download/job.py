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
from typing import Any, get_type_hints

JOB_FILE = "job.json"
_CHANGEABLE = frozenset(
    {"allow_addresses", "deadline_s", "distributor", "per_host", "processes", "retries", "threads"}
    | {"timeout_s", "user_agent"}
)


def option(
    default: Any,
    text: str = "",
    *,
    flag: str = "",
    metavar: str | None = None,
    least: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a dataclass that a flag sets."""
    about = {"text": text, "flag": flag, "metavar": metavar, "least": least, "choices": choices}
    return field(default=default, metadata=about)


def add_options(parser: Any, kind: type, *, names: Iterable[str] = (), unset: bool = False) -> None:
    """Add the flags of a dataclass to a parser or a group of one."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        about = each.metadata
        if not about.get("text") or (names and each.name not in names):
            continue
        flag = about["flag"] or f"--{each.name.replace('_', '-')}"
        default = None if unset else each.default
        given: dict[str, Any] = {"dest": each.name, "default": default, "help": about["text"]}
        if isinstance(each.default, bool):
            given["action"] = "store_false" if each.default else "store_true"
        else:
            given |= {"metavar": about["metavar"], "choices": about["choices"]}
            if each.default == ():
                given |= {"action": "append", "default": []}
            else:
                kinds = [k for k in (int, float) if k in _kinds_of(hints[each.name])]
                given["type"] = kinds[0] if kinds else str
                if default is not None:
                    given["help"] += " (default: %(default)s)"
        parser.add_argument(flag, **given)


def _kinds_of(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__args__", (hint,))


def check_options(values: Any) -> None:
    """Hold a dataclass of options to the limits that its fields declare.

    Raises:
        ValueError: names the flag.
    """
    for each in fields(values):
        value, about = getattr(values, each.name), each.metadata
        flag = about.get("flag") or f"--{each.name.replace('_', '-')}"
        if about.get("least") is not None and value is not None and not value >= about["least"]:
            raise ValueError(f"{flag} must be at least {about['least']}, got {value}")
        if about.get("choices") and value is not None and value not in about["choices"]:
            raise ValueError(f"{flag} must be one of {', '.join(about['choices'])}, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything that the shards of a download depend on."""

    table: str  # Folder of parquet parts with the columns row_id, url and caption
    shards: str  # Folder or fsspec URL that the shards are written to
    extra_columns: tuple[str, ...] = ()
    """Further columns of the table that go into the shards' parquet."""
    image_size: int = option(
        256, "short side of a stored picture; none is enlarged", metavar="PIXELS", least=1
    )
    encode_quality: int = option(
        95, "of the stored JPEG, 1 to 100", flag="--quality", metavar="N", least=1
    )
    min_image_size: int = option(
        64, "pictures with a smaller short side are left out", metavar="PIXELS", least=0
    )
    max_aspect_ratio: float = option(
        5.0, "longer pictures are left out: long side by short side", metavar="RATIO", least=1
    )
    max_pixels: int = option(
        100_000_000, "larger pictures, by their header, are not decoded", metavar="N", least=1
    )
    samples_per_shard: int = option(10_000, "rows tried for one shard", metavar="ROWS", least=1)
    processes: int = option(0, "worker processes; 0: one for each core", metavar="N", least=0)
    threads: int = option(64, "fetches at the same time in each process", metavar="N", least=1)
    per_host: int = option(
        32, "fetches from one host at the same time in each process", metavar="N", least=1
    )
    timeout_s: float = option(
        10.0, "for one wait on the network", flag="--timeout", metavar="SECONDS", least=0.001
    )
    deadline_s: float = option(
        30.0, "for one try with its redirects", flag="--deadline", metavar="SECONDS", least=0.001
    )
    max_bytes: int = option(
        64 << 20, "of one picture, both as sent and unpacked", metavar="BYTES", least=1
    )
    retries: int = option(2, "further tries where they can help", metavar="N", least=0)
    user_agent: str = option(
        "Mozilla/5.0 (compatible; TesseraDownloader/0.2)",
        "name that the downloader gives itself",
        metavar="TEXT",
    )
    allow_addresses: tuple[str, ...] = option(
        (),
        "network that may be fetched from although it is not public, without a limit per host; "
        "may be repeated",
        flag="--allow-address",
        metavar="CIDR",
    )
    respect_opt_out: bool = option(
        True,
        "store pictures that their servers reserve (X-Robots-Tag, TDM-Reservation) too",
        flag="--ignore-opt-out",
    )
    distributor: str = option(
        "multiprocessing",
        "how the shards are spread; ray and pyspark spread them over machines",
        choices=("multiprocessing", "ray", "pyspark"),
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.encode_quality > 100:
            raise ValueError(f"--quality must be 1 to 100, got {self.encode_quality}")
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise ValueError("--user-agent must be printable ASCII on one line")
        for network in self.allow_addresses:
            ipaddress.ip_network(network)

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
        known = Job.load(folder)
        differences = [
            f"{each.name} was {getattr(known, each.name)!r}, now {getattr(self, each.name)!r}"
            for each in fields(Job)
            if each.name not in _CHANGEABLE
            and getattr(known, each.name) != getattr(self, each.name)
        ]
        if differences:
            raise ValueError(
                f"{folder} was begun with other options ({'; '.join(differences)}): "
                "give the same ones, or another folder"
            )


def option_names(kind: type) -> list[str]:
    """Names of a dataclass's fields that have a flag."""
    return [each.name for each in fields(kind) if each.metadata.get("text")]


def from_arguments(kind: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of a dataclass's flags, as `add_options` had them parsed."""
    values = {name: getattr(arguments, name) for name in option_names(kind)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
