r"""Add captions to an index: rewrites, recaptions, further languages; any number of sources.

    python tools/add_captions.py INDEX laclip cc12m.csv cc12m_chatgpt.txt cc12m_bard.txt \
        --format laclip --join key
    python tools/add_captions.py INDEX vecap wit_300m-*.json --format json-map --join url
    python tools/add_captions.py INDEX dreamlip cc12m_3long_3short_1raw_captions_url.csv \
        --format dreamlip --join url
    python tools/add_captions.py INDEX mine rewrites.parquet --join key \
        --key-column key --text-columns short long
    python tools/add_captions.py INDEX alt --format shards --text-columns alt_text

Every row finds its sample by key, by URL (an index made with `--columns url`), or by its place,
which must then be proven by the words that texts share with the originals. The source appears in
the index when it is complete; nothing else there changes. Train with `--data.captions caption=1
laclip=4`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro
from tqdm import tqdm

from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.caption_readers import Reader, ShardFieldReader, TableReader
from tessera.pipeline.index.import_captions import ImportOptions, ImportReport, import_captions
from tessera.pipeline.index.laclip import LaclipReader
from tessera.pipeline.index.open_table import TableOptions

DREAMLIP_KEY = "Image Path"
"""Column of the URL in DreamLIP's CSV."""
DREAMLIP_TEXTS = tuple(
    f"{length}{model}_captions" for model in ("IB", "SV", "LLA") for length in ("short", "long")
)
"""Its captions by InstructBLIP, ShareGPT4V and LLaVA 1.5; raw_caption is the original."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Add captions to an index."""

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    name: tyro.conf.Positional[str]
    """Of the source: small letters, digits, `_` and `-`."""
    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """What is read; for laclip the originals first. None for shards."""
    format: Literal["table", "laclip", "json-map", "dreamlip", "shards"] = "table"
    """table: .csv, .tsv, .jsonl, .json or .parquet with named columns, or a folder of parquet files
    as on the Hugging Face hub. laclip: CSV or txt of originals,
    then aligned txt. json-map: objects from URL to text or texts. dreamlip: its CSV. shards:
    fields of the json in the shards."""
    join: Literal["key", "url", "row"] = "key"
    """What rows find their samples by; not used for shards."""
    source: str = ""
    """join by key: the source of the index that the keys are of, where it has several. By default
    a key is written SOURCE:KEY if it alone could be of two."""
    key_column: str = ""
    """table: column of the key or URL; `key` or `url` if not given."""
    text_columns: tuple[str, ...] = ()
    """table and dreamlip: columns of the texts; `caption` if not given, or DreamLIP's six. shards:
    fields of the json."""
    stem: bool | None = None
    """The key is the name of a file: `a/b/000012.jpg` is 000012. As needed if not given."""
    read_as: tyro.conf.OmitArgPrefixes[TableOptions] = field(default_factory=TableOptions)
    """How a table is to be read."""
    repeats: Literal["first", "last", "all"] = "first"
    """Which of several rows of the same sample count."""
    min_words: int = 2
    """In place of a text with fewer words the original is served."""
    workers: int = 1
    """Processes that tokenise."""
    replace: bool = False
    """Put the source in the place of one with its name."""
    dry_run: bool = False
    """Read, join and count, and write nothing."""

    def __post_init__(self) -> None:
        if bool(self.files) == (self.format == "shards"):
            raise ValueError("give FILES, or --format shards without any")
        if self.format == "shards" and not self.text_columns:
            raise ValueError("--format shards needs --text-columns: fields of the json")
        if self.format == "json-map" and self.join == "row":
            raise ValueError("the entries of a JSON map have keys: --join url or key")
        if self.format == "laclip" and self.join != "row" and _is_text(self.files[0]):
            raise ValueError(
                f"the lines of {self.files[0]} have no keys: join them by their order, --join row"
            )
        if self.source and (self.join != "key" or self.format == "shards"):
            raise ValueError("--source is for --join key")
        missing = [str(path) for path in self.files if not path.exists()]
        if missing:
            raise FileNotFoundError(f"there is no file {', '.join(missing)}")

    def reader(self, index: Index) -> Reader:
        """What reads the files."""
        if self.format == "shards":
            return ShardFieldReader(index=index, fields=self.text_columns)
        by_key = self.join == "key"
        if self.format == "laclip":
            return LaclipReader(files=self.files, stem=by_key if self.stem is None else self.stem)
        dreamlip = self.format == "dreamlip"
        usual_texts = DREAMLIP_TEXTS if dreamlip else ("caption",)
        usual_key = DREAMLIP_KEY if dreamlip else self.join
        if self.format == "json-map":
            usual_key = "key"
        return TableReader(
            files=self.files,
            text_columns=self.text_columns or usual_texts,
            key_column="" if self.join == "row" else self.key_column or usual_key,
            stem=bool(self.stem),
            options=self.read_as,
        )


def _is_text(originals: Path) -> bool:
    """Whether originals of LaCLIP's format are lines without paths, as RedCaps' are."""
    return originals.suffix.lower() != ".csv"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_add, argv, stopped="stopped; nothing was changed")


def _add(words: list[str]) -> dict[str, Any]:
    start = time.perf_counter()
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    report = add_captions(arguments)
    seconds = time.perf_counter() - start
    print("\n".join(lines(arguments, report, seconds)))
    return {"name": arguments.name, "seconds": seconds, **asdict(report)}


def add_captions(arguments: Arguments) -> ImportReport:
    """Add the source, with a progress bar for each part of the work."""
    index = open_index(arguments.index)
    bars: dict[str, tqdm] = {}

    def progress(what: str, count: int) -> None:
        if what not in bars:
            unit = " rows" if what == "reading" else " texts"
            bars[what] = tqdm(desc=what, unit=unit, unit_scale=True, disable=None)
        bars[what].update(count)

    try:
        return import_captions(
            index,
            arguments.name,
            arguments.reader(index),
            ImportOptions(
                join="order" if arguments.format == "shards" else arguments.join,
                source=arguments.source,
                repeats=arguments.repeats,
                min_words=arguments.min_words,
                num_workers=arguments.workers,
                replace=arguments.replace,
                dry_run=arguments.dry_run,
            ),
            progress,
        )
    finally:
        for bar in bars.values():
            bar.close()


def lines(arguments: Arguments, report: ImportReport, seconds: float) -> list[str]:
    """What became of rows and texts, for people."""
    by = arguments.join if arguments.format != "shards" else "row"
    found = [
        f"{report.num_rows:,} rows in {seconds:.1f} s ({report.num_rows / seconds:,.0f} rows/s)",
        f"  {report.num_unknown:,} of no sample of the index",
        f"  {report.num_rows_without_text:,} without text",
        f"  {report.num_repeated:,} repeated: the {arguments.repeats} row of a sample counts",
        f"{report.num_texts:,} texts for {report.num_samples:,} samples: coverage "
        f"{report.coverage:.2%}; the others keep the original",
        f"  {report.num_short:,} with fewer than {arguments.min_words} words, "
        f"{report.num_empty:,} of them empty: the original is served instead",
    ]
    if report.overlap is not None:
        found.append(f"joined by {by}; words shared with originals: {report.overlap:.1%} or more")
    if arguments.dry_run:
        found.append("dry run: nothing was written")
    return found


if __name__ == "__main__":
    sys.exit(main())
