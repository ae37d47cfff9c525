"""What do short captions cost: tagging their words once, and choosing tokens for every batch?

    pip install HanTa
    python tools/benchmark_text_reduction.py data/cc12m/index --texts 20000

Tags some captions of an index as `tools/tag_captions.py` does with one process (the index stays as
it is), and packs batches of them to every context length in every way of `--data.text-reduction`,
in turns. Rates are of this process's processor time; of the packing the median over repeats, the
draws of the counter-based generator included.
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
import tyro
from numpy.typing import NDArray

from pipeline.arrow_file import write_batch
from pipeline.captions import CaptionTable
from pipeline.counter_random import Purpose, uniforms
from pipeline.index import DEFAULT_SOURCE, open_index
from pipeline.text_reduction import TextReductionKind, choose_tokens, draws_needed
from pipeline.word_classes import read_word_classes, write_word_classes

KINDS: tuple[TextReductionKind, ...] = get_args(TextReductionKind)
_SPECIAL_TOKENS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Measure tagging and text reduction."""

    index: tyro.conf.Positional[Path]
    """Folder of an index."""
    source: str = DEFAULT_SOURCE
    """Which caption source."""
    tagger: str = "hanta"
    """As of tools/tag_captions.py."""
    texts: int = 20_000
    """Captions that are tagged; those there are, if fewer."""
    batch_size: int = 2048
    """Captions of a batch; drawn with repeats."""
    context_lengths: tuple[int, ...] = (8, 16, 32)
    """Most tokens of a caption, start and end included."""
    repeats: int = 30
    """Batches timed of each kind."""

    def __post_init__(self) -> None:
        if min(self.texts, self.batch_size, self.repeats) < 1 or not self.context_lengths:
            raise ValueError("--texts, --batch-size, --repeats and --context-lengths must be given")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    result = measure(tyro.cli(Arguments, args=words, description=program.describe(__doc__)))
    print("\n".join(lines(result)))
    return result


def measure(arguments: Arguments) -> dict[str, Any]:
    """Tag, then pack in every way."""
    whole = open_index(arguments.index).captions(arguments.source)
    num_texts = min(arguments.texts, whole.num_texts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.arrow"
        last = int(whole.sample[num_texts - 1]) + 1
        write_batch(path, whole.of_samples(0, last))
        table = CaptionTable(path, last)
        start = time.process_time()
        report = write_word_classes(table, arguments.tagger, num_workers=1)
        tagging = time.process_time() - start
        packing = pack_all(table, read_word_classes(table), arguments)
    return {
        "num_texts": report.num_texts,
        "mean_tokens": report.num_tokens / report.num_texts + _SPECIAL_TOKENS,
        "tagger": arguments.tagger,
        "tagged_texts_per_cpu_s": report.num_texts / tagging,
        "batch_size": arguments.batch_size,
        "packing": packing,
        "environment": {"python": platform.python_version(), "machine": platform.machine()},
    }


def pack_all(
    table: CaptionTable, word_classes: NDArray[np.uint8], arguments: Arguments
) -> list[dict[str, Any]]:
    """Microseconds a caption of every kind and length; the kinds take turns."""
    found = []
    rows = np.random.default_rng(0).integers(0, table.num_texts, arguments.batch_size)
    for length in arguments.context_lengths:
        times: dict[TextReductionKind, list[float]] = {kind: [] for kind in KINDS}
        for number in range(arguments.repeats + 1):
            for kind in KINDS:
                start = time.process_time()
                pack(table, rows, length, kind, number, word_classes)
                times[kind].append((time.process_time() - start) / len(rows) * 1e6)
        too_long = float((table.lengths(rows) > length - _SPECIAL_TOKENS).mean())
        found.append(
            {
                "context_length": length,
                "too_long": too_long,
                # The first of each is warm-up.
                "microseconds": {kind: statistics.median(each[1:]) for kind, each in times.items()},
            }
        )
    return found


def pack(
    table: CaptionTable,
    rows: NDArray[np.int64],
    length: int,
    kind: TextReductionKind,
    pass_number: int,
    word_classes: NDArray[np.uint8],
) -> None:
    """One batch as the loader packs it, draws included."""
    needed = draws_needed(kind, table.lengths(rows), length - _SPECIAL_TOKENS)
    draws = uniforms(0, pass_number, rows, Purpose.TEXT, needed)
    choose = partial(choose_tokens, kind=kind, draws=draws, word_classes=word_classes)
    table.pack(rows, length, choose)


def lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    found = [
        f"tagging    {result['tagged_texts_per_cpu_s']:,.0f} captions a second of one core "
        f"({result['tagger']}, {result['num_texts']:,} captions of {result['mean_tokens']:.1f} "
        "tokens in the mean)",
        f"packing, microseconds a caption of a batch of {result['batch_size']:,}",
        f"{'context':>8}{'too long':>10}" + "".join(f"{kind:>10}" for kind in KINDS),
    ]
    return found + [
        f"{each['context_length']:8}{each['too_long']:10.1%}"
        + "".join(f"{each['microseconds'][kind]:10.2f}" for kind in KINDS)
        for each in result["packing"]
    ]


if __name__ == "__main__":
    sys.exit(main())
