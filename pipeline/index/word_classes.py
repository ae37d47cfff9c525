"""Word classes of captions, found once and kept beside the token ids, for CLIPA's syntax reduction.

`captions/<source>.word_classes.npy` holds one uint8 for every token id of the source: 0 noun,
1 adjective, 2 verb, 3 other, the order in which CLIPA's code keeps them. A caption is tagged word
by word in its context, and a token has the class of its word: the form of CLIPA's PyTorch code. Its
JAX code tags every entry of the vocabulary on its own; `context_free` does.

Taggers are libraries that a person installs; nothing is downloaded.

Legend: K texts of a source, V token ids of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.durable import sync_folder, write_text
from tessera.pipeline.index.captions import EOT, MAX_TOKENS, CaptionTable
from tessera.pipeline.index.tokenizer import encode_pieces, token_strings
from tessera.pipeline.storage import head_tail_crc32
from tessera.pipeline.workers import map_in_processes

Tagger = Callable[[list[str]], list[str]]
"""From the words of a caption to a part-of-speech tag for each."""

CLASSES = ("noun", "adjective", "verb", "other")
"""Names of the classes 0 to 3."""
_OTHER = 3
# Penn Treebank tags as NLTK gives them and CLAWS5 tags as HanTa does. Modal verbs are no verbs in
# the first (MD), so they are none in the second either (VM0).
_PREFIXES = (("NN", "NP"), ("JJ", "AJ"), ("VB", "VV", "VD", "VH"))
_TEXTS_AT_ONCE = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TaggingReport:
    """What was tagged."""

    num_texts: int
    """K."""
    num_tokens: int
    """V."""
    share: dict[str, float]
    """Share of the token ids in each class."""
    unaligned: int
    """Texts whose words do not add up to their token ids; all of theirs are `other`."""


def open_tagger(name: str) -> Tagger:
    """Open a tagger.

    Args:
        name: `hanta` (English, comes with its model), `nltk` (needs its data folder), or the path
            of a lexicon: a text file of lines `word<TAB>tag`, read without context.

    Raises:
        ValueError: it is not installed, its data are missing, or the lexicon has a wrong line.
        FileNotFoundError: there is no such lexicon.
    """
    if name == "hanta":
        return _open_hanta()
    if name == "nltk":
        return _open_nltk()
    lexicon = _read_lexicon(Path(name))
    return lambda words: [lexicon.get(word.lower(), "") for word in words]


def class_of(tag: str) -> int:
    """Class 0 to 3 of a part-of-speech tag."""
    for number, prefixes in enumerate(_PREFIXES):
        if tag.startswith(prefixes):
            return number
    return _OTHER


def classify(text: str, num_ids: int, tagger: Tagger) -> NDArray[np.uint8] | None:
    """Classes of a caption's token ids.

    Args:
        text: the caption.
        num_ids: token ids that the index keeps of it.
        tagger: from `open_tagger`.

    Returns:
        [num_ids] uint8, or None if the words do not add up to so many ids.
    """
    if not num_ids:  # a text of too few words, which is never served
        return np.empty(0, np.uint8)
    words, counts = encode_pieces(text)
    if min(sum(counts), MAX_TOKENS) != num_ids:
        return None
    classes = np.array([class_of(tag) for tag in tagger(words)], dtype=np.uint8)
    return np.repeat(classes, counts)[:num_ids]


def write_word_classes(
    table: CaptionTable,
    tagger_name: str,
    num_workers: int,
    progress: Callable[[int], object] = lambda _: None,
    *,
    context_free: bool = False,
) -> TaggingReport:
    """Tag all texts of a source; the file appears when it is complete.

    Args:
        table: the source.
        tagger_name: see `open_tagger`.
        num_workers: processes.
        progress: told how many texts are done.
        context_free: show the tagger every entry of the vocabulary alone, once, whatever the texts.

    Raises:
        ValueError: see `open_tagger`.
        RuntimeError: a worker process was killed.
    """
    tagger = open_tagger(tagger_name)
    path = _path(table)
    batches = (
        _looked_up(table, classes_of_vocabulary(tagger))
        if context_free
        else _tagged(table, tagger_name, num_workers)
    )
    partial_path = path.with_name(f".partial_{path.name}")
    num_tokens = len(table.token_ids)
    classes = np.lib.format.open_memmap(partial_path, "w+", np.uint8, (num_tokens,))
    counts, unaligned, end = np.zeros(len(CLASSES), np.int64), 0, 0
    try:
        for found, bad in batches:
            start, end = end, end + sum(map(len, found))
            classes[start:end] = np.concatenate(found)
            counts += np.bincount(classes[start:end], minlength=len(CLASSES))
            unaligned += bad
            progress(len(found))
        classes.flush()
        partial_path.rename(path)
    finally:
        partial_path.unlink(missing_ok=True)
    sync_folder(path.parent)
    described = {"tagger": tagger_name, "context_free": context_free, "classes": CLASSES}
    described |= _identity(table)
    write_text(_described(path), json.dumps(described, indent=1))
    return TaggingReport(
        num_texts=table.num_texts,
        num_tokens=num_tokens,
        share=dict(zip(CLASSES, (counts / max(1, num_tokens)).tolist(), strict=True)),
        unaligned=unaligned,
    )


def read_word_classes(table: CaptionTable) -> NDArray[np.uint8]:
    """The classes of all token ids of a source, memory-mapped: [V] uint8.

    Raises:
        ValueError: the source was not tagged, or has changed since.
    """
    path = _path(table)
    hint = f"run `python tools/tag_captions.py INDEX --source {table.path.stem}`"
    try:
        described = json.loads(_described(path).read_text(encoding="utf-8"))
        classes = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise ValueError(f"{table.path} has no word classes; {hint}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); {hint}") from error
    wanted = _identity(table)
    if {key: described.get(key) for key in wanted} != wanted or len(classes) != len(
        table.token_ids
    ):
        raise ValueError(f"{path} belongs to other captions than {table.path}; {hint}")
    return classes


def _tagged(
    table: CaptionTable, tagger_name: str, num_workers: int
) -> Iterator[tuple[list[NDArray[np.uint8]], int]]:
    """Classes of the texts in order, in batches, and how many of each could not be aligned."""
    lengths = np.diff(table.token_offsets)
    batches = (
        (table.text[first : first + _TEXTS_AT_ONCE].to_pylist(), lengths[first:][:_TEXTS_AT_ONCE])
        for first in range(0, table.num_texts, _TEXTS_AT_ONCE)
    )
    work = partial(_classify_batch, tagger_name)
    if num_workers == 1:
        yield from map(work, batches)
        return
    yield from map_in_processes(work, batches, num_workers)


def classes_of_vocabulary(tagger: Tagger) -> NDArray[np.uint8]:
    """Class of every token id, tagged as a text of its own: [EOT + 1] uint8."""
    pieces = [each.removesuffix("</w>") for each in token_strings(range(EOT + 1))]
    return np.array([class_of(tagger([piece])[0]) for piece in pieces], dtype=np.uint8)


def _looked_up(
    table: CaptionTable, by_id: NDArray[np.uint8]
) -> Iterator[tuple[list[NDArray[np.uint8]], int]]:
    """As `_tagged`, from the classes of the vocabulary."""
    offsets = table.token_offsets
    for first in range(0, table.num_texts, _TEXTS_AT_ONCE):
        ends = offsets[first : first + _TEXTS_AT_ONCE + 1]
        classes = by_id[table.token_ids[ends[0] : ends[-1]]]
        yield np.split(classes, ends[1:-1] - ends[0]), 0


def _classify_batch(
    tagger_name: str, batch: tuple[list[str], NDArray[np.int64]]
) -> tuple[list[NDArray[np.uint8]], int]:
    tagger = _cached_tagger(tagger_name)
    texts, lengths = batch
    found, unaligned = [], 0
    for text, length in zip(texts, lengths.tolist(), strict=True):
        classes = classify(text, length, tagger)
        unaligned += classes is None
        found.append(np.full(length, _OTHER, np.uint8) if classes is None else classes)
    return found, unaligned


_cached_tagger = lru_cache(maxsize=1)(open_tagger)


def _path(table: CaptionTable) -> Path:
    return table.path.with_name(f"{table.path.stem}.word_classes.npy")


def _described(path: Path) -> Path:
    return path.with_suffix(".json")


def _identity(table: CaptionTable) -> dict[str, Any]:
    """What tells one version of a caption file from another."""
    return {
        "num_texts": table.num_texts,
        "num_tokens": len(table.token_ids),
        "head_tail_crc32": head_tail_crc32(str(table.path)),
    }


def _open_hanta() -> Tagger:
    try:
        from HanTa import HanoverTagger  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "the tagger hanta is not installed: pip install HanTa, or name another --tagger"
        ) from None
    tag = HanoverTagger.HanoverTagger("morphmodel_en.pgz").tag_sent
    return lambda words: [str(found[2]) for found in tag(words)]


def _open_nltk() -> Tagger:
    try:
        import nltk  # pyright: ignore[reportMissingImports]

        nltk.pos_tag(["word"])
    except ImportError:
        raise ValueError(
            "the tagger nltk is not installed: pip install nltk, or name another --tagger"
        ) from None
    except LookupError:
        raise ValueError(
            "nltk lacks its tagger's data: python -m nltk.downloader "
            "averaged_perceptron_tagger_eng, or set NLTK_DATA to the folder that holds them"
        ) from None
    return lambda words: [tag for _, tag in nltk.pos_tag(words)]


def _read_lexicon(path: Path) -> dict[str, str]:
    lexicon = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        word, tab, tag = line.strip("\r").partition("\t")
        if line and not (word and tab and tag):
            raise ValueError(f"{path}, line {number}: expected word<TAB>tag, got {line[:80]!r}")
        lexicon[word.lower()] = tag
    return lexicon
