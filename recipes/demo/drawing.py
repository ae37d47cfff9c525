"""Drawn data sets on disk, made when a run asks for them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tqdm import tqdm

from tessera.pipeline.index import ScanOptions, build_index, open_index
from tessera.pipeline.index.caption_readers import TableReader
from tessera.pipeline.index.dataset import open_dataset
from tessera.pipeline.index.import_captions import ImportOptions, import_captions
from tessera.pipeline.index.select import Criteria, choose
from tessera.pipeline.index.selections import list_selections, write_selection
from tessera.pipeline.index.word_classes import read_word_classes, write_word_classes
from tessera.recipes.demo.captions import (
    BACKGROUND_PHRASES,
    SIZE_WORDS,
    TEXTURE_WORDS,
    VARIED,
    write_captions,
)
from tessera.recipes.demo.objects import COLOURS, SHAPE_BY_NAME
from tessera.recipes.demo.scenes import describe, sample_rng
from tessera.recipes.demo.shards import demo_shards_ready, write_demo_shards

_SEED = 0
_TEXTS_AGAIN = 4
"""Texts of a picture in an added source, as many as LaCLIP's rewrites."""


def draw_data(root: Path, *, num_train: int, num_heldout: int) -> None:
    """Draw and index pictures, unless they are there.

    Args:
        root: gets shards/train and shards/heldout, index/train and index/heldout.
        num_train: pictures to train on.
        num_heldout: pictures of colours on backgrounds that no training picture has.
    """
    size = {"num_train": num_train, "num_heldout": num_heldout, "seed": _SEED}
    num_workers = len(os.sched_getaffinity(0))
    if not demo_shards_ready(root / "shards", **size):
        with tqdm(total=num_train + num_heldout, desc="drawing", disable=None) as bar:
            write_demo_shards(root / "shards", **size, num_workers=num_workers, progress=bar.update)
    for split in ("train", "heldout"):
        _index_if_needed(root, split, num_workers)


def write_captions_again(root: Path, name: str) -> None:
    """Add four further wordings of each training caption as a source, unless it is there.

    The texts go through a file and `import_captions`, as rewrites by a language model do.

    Args:
        root: as for `draw_data`, which must have been called.
        name: of the source.
    """
    index = open_index(root / "index" / "train")
    if name in index.sources:
        return
    path = root / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for key in index.keys(range(index.num_samples)):
            scene = describe(_SEED, "train", int(key))
            rng = sample_rng(_SEED, "train", int(key), name)
            texts = write_captions(rng, scene, VARIED, _TEXTS_AGAIN)
            file.write(json.dumps({"key": key, "caption": texts}) + "\n")
    reader = TableReader(files=(path,), text_columns=("caption",), key_column="key", stem=False)
    import_captions(index, name, reader, ImportOptions())


def select_half(root: Path, name: str) -> None:
    """Store a selection of half of the training pictures, unless it is there.

    Args:
        root: as for `draw_data`, which must have been called.
        name: of the selection.
    """
    dataset = open_dataset(root / "index" / "train")
    if name not in list_selections(dataset.index):
        half = dataset.num_samples // 2
        rows = choose(dataset, Criteria(limit=half)).rows[""]
        command = ["--out", name, "--limit", str(half)]
        write_selection(dataset.index, name, rows, {"command": command})


def tag_captions(root: Path) -> None:
    """Find the word classes of the training captions, by a lexicon of the words that are drawn."""
    index = open_index(root / "index" / "train")
    for source in index.sources:
        table = index.captions(source)
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
