from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tessera.pipeline import LoaderConfig, open_evaluation_loader, open_loader
from tessera.pipeline.index import open_index
from tessera.pipeline.index.text_reduction import TextReductionKind
from tessera.pipeline.index.tokenizer import encode_captions, token_strings
from tessera.pipeline.index.word_classes import write_word_classes

CONFIG = LoaderConfig(batch_size=24, image_size=32, patch_size=8, context_length=5)


@pytest.fixture
def tagged(coloured_index: Path, tmp_path: Path) -> Path:
    """The coloured pictures, whose captions are tagged by a small lexicon."""
    index = shutil.copytree(coloured_index.parent, tmp_path / "coloured") / "index"
    lexicon = tmp_path / "words.tsv"
    colours = ["red", "green", "blue", "yellow", "white", "purple"]
    lexicon.write_text(
        "picture\tNN\nnumber\tNN\n" + "".join(f"{c}\tJJ\n" for c in colours), "utf-8"
    )
    write_word_classes(open_index(index).captions(), str(lexicon), 1)
    return index


def captions_of(
    index: Path, kind: TextReductionKind, steps: int = 3
) -> list[tuple[str, list[int]]]:
    """Full text and served ids, without SOT and EOT, of each sample visited."""
    found = []
    with open_loader(index, replace(CONFIG, text_reduction=kind)) as loader:
        for step in range(steps):
            texts = loader.captions.texts(loader.preview(step).caption_rows)
            batch = next(loader)
            parts = np.split(batch.tokens.numpy(), batch.text_offsets[1:-1].numpy())
            found += [(t, part[1:-1].tolist()) for t, part in zip(texts, parts, strict=True)]
    return found


@pytest.mark.parametrize("kind", ["truncate", "random", "shuffle", "block", "syntax"])
def test_long_captions_keep_three_of_their_tokens(tagged: Path, kind: TextReductionKind) -> None:
    differ = 0
    for text, served in captions_of(tagged, kind):
        ids = encode_captions([text])[0].tolist()
        assert len(served) == 3 < len(ids)
        assert all(ids.count(token) >= served.count(token) for token in served)
        differ += served != ids[:3]
    assert (differ == 0) == (kind == "truncate")


def test_syntax_keeps_nouns_before_adjectives(tagged: Path) -> None:
    for text, served in captions_of(tagged, "syntax"):
        assert token_strings(served) == [f"{text.split()[1]}</w>", "picture</w>", "number</w>"]


def test_each_pass_draws_anew_and_a_restart_alike(coloured_index: Path) -> None:
    first = captions_of(coloured_index, "random", steps=8)
    assert first == captions_of(coloured_index, "random", steps=8)
    by_text: dict[str, set[tuple[int, ...]]] = {}
    for text, served in first:
        by_text.setdefault(text, set()).add(tuple(served))
    assert max(map(len, by_text.values())) > 1


def test_evaluation_truncates(tagged: Path) -> None:
    with open_evaluation_loader(tagged, replace(CONFIG, text_reduction="shuffle")) as loader:
        batch = next(loader)
    first = batch.tokens[1:4].tolist()
    assert first == encode_captions([loader.captions.texts(np.array([0]))[0]])[0][:3].tolist()


def test_untagged_captions_are_refused(coloured_index: Path) -> None:
    with pytest.raises(ValueError, match=r"tag_captions\.py"):
        captions_of(coloured_index, "syntax")
