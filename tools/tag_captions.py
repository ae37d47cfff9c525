"""Tag the captions of an index once, for training with `--data.text-reduction syntax`.

    pip install HanTa
    python tools/tag_captions.py INDEX
    python tools/tag_captions.py INDEX --source rewrites --tagger words.tsv
    python tools/tag_captions.py INDEX --context-free

Finds the word class of every token (noun, adjective, verb, other) and writes it beside the caption
source; training then only looks it up.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro
from tqdm import tqdm

from tessera.pipeline.index import DEFAULT_SOURCE, open_index
from tessera.pipeline.index.word_classes import write_word_classes


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Find the word classes of a caption source."""

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    source: str = DEFAULT_SOURCE
    """Which caption source."""
    tagger: str = "hanta"
    """hanta (English, pip install HanTa), nltk (with its data installed), or the path of a lexicon:
    lines of word, tab, part-of-speech tag."""
    context_free: bool = False
    """Tag every entry of the vocabulary alone, as CLIPA's JAX code does (v2's H/14), and not
    the words of each caption in their context."""
    workers: int = 0
    """Processes; 0 takes one for each core."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv, stopped="stopped; nothing was changed")


def _run(words: list[str]) -> dict[str, Any]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    start = time.perf_counter()
    table = open_index(arguments.index).captions(arguments.source)
    with tqdm(total=table.num_texts, unit=" texts", disable=None) as bar:
        workers = arguments.workers or len(os.sched_getaffinity(0))
        report = write_word_classes(
            table, arguments.tagger, workers, bar.update, context_free=arguments.context_free
        )
    seconds = time.perf_counter() - start
    print(f"{report.num_texts:,} texts, {report.num_tokens:,} tokens in {seconds:.1f} s")
    for name, share in report.share.items():
        print(f"  {name:10} {share:6.1%}")
    if report.unaligned:
        print(f"{report.unaligned:,} texts could not be aligned with their tokens: all `other`")
    return {**asdict(report), "seconds": seconds, "tagger": arguments.tagger}


if __name__ == "__main__":
    sys.exit(main())
