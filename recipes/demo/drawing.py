"""Drawn data sets on disk, made when a run asks for them."""

from __future__ import annotations

import os
from pathlib import Path

from tqdm import tqdm

from pipeline.index import open_index
from pipeline.indexing import ScanOptions, build_index
from pipeline.word_classes import read_word_classes, write_word_classes
from recipes.demo.captions import BACKGROUND_PHRASES, SIZE_WORDS, TEXTURE_WORDS
from recipes.demo.objects import COLOURS, SHAPE_BY_NAME
from recipes.demo.shards import demo_shards_ready, write_demo_shards


def draw_data(root: Path, *, num_train: int, num_heldout: int) -> None:
    """Draw and index pictures, unless they are there.

    Args:
        root: gets shards/train and shards/heldout, index/train and index/heldout.
        num_train: pictures to train on.
        num_heldout: pictures of colours on backgrounds that no training picture has.
    """
    size = {"num_train": num_train, "num_heldout": num_heldout, "seed": 0}
    num_workers = len(os.sched_getaffinity(0))
    if not demo_shards_ready(root / "shards", **size):
        with tqdm(total=num_train + num_heldout, desc="drawing", disable=None) as bar:
            write_demo_shards(root / "shards", **size, num_workers=num_workers, progress=bar.update)
    for split in ("train", "heldout"):
        _index_if_needed(root, split, num_workers)


def tag_captions(root: Path) -> None:
    """Find the word classes of the training captions, by a lexicon of the words that are drawn."""
    table = open_index(root / "index" / "train").captions()
    try:
        read_word_classes(table)
    except ValueError:
        lexicon = root / "words.tsv"
        lines = [f"{word}\t{tag}\n" for word, tag in _word_classes().items()]
        lexicon.write_text("".join(lines), encoding="utf-8")
        write_word_classes(table, str(lexicon), num_workers=1)


def _word_classes() -> dict[str, str]:
    """Penn Treebank tags of the words for things and for what they look like."""
    adjectives = [*COLOURS, *(w for words in TEXTURE_WORDS.values() for w in words)]
    adjectives += [word for words in SIZE_WORDS.values() for word in words if word]
    nouns = [word for name in [*SHAPE_BY_NAME, *BACKGROUND_PHRASES] for word in name.split()]
    return dict.fromkeys(adjectives, "JJ") | dict.fromkeys(nouns, "NN")


def _index_if_needed(root: Path, split: str, num_workers: int) -> None:
    """Index the shards of a split, unless an index of these very shards is there."""
    index_dir, shards = root / "index" / split, sorted((root / "shards" / split).glob("*.tar"))
    try:
        open_index(index_dir).check_shards()
    except (FileNotFoundError, ValueError):
        options = ScanOptions(captions="json:captions")
        build_index(shards, index_dir, options=options, num_workers=num_workers)
