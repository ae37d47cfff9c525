"""Several texts of an image in one batch, from the index to the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tessera.pipeline import LoaderConfig, PackedBatch, open_evaluation_loader, open_loader
from tessera.pipeline.index import open_index
from tessera.pipeline.index.tokenizer import encode_captions
from tessera.training.accumulation import split

CONFIG = LoaderConfig(
    batch_size=12,
    image_size=32,
    patch_size=8,
    context_length=24,
    captions=("caption=2",),
    every_text=True,
)


def texts_of(batch: PackedBatch) -> dict[int, list[list[int]]]:
    """Token ids of the texts of each sample, in their order."""
    parts = np.split(batch.tokens.numpy(), batch.text_offsets[1:-1].numpy())
    number = batch.texts_per_image
    return {
        sample: [part.tolist() for part in parts[place * number : (place + 1) * number]]
        for place, sample in enumerate(batch.sample_ids.tolist())
    }


@pytest.mark.parametrize("num_parts", [1, 2])
def test_an_image_comes_with_all_its_texts(coloured_index: Path, num_parts: int) -> None:
    """On any number of ranks, and cut into chunks."""
    captions = open_index(coloured_index).captions()
    found: dict[int, list[list[int]]] = {}
    for rank in range(num_parts):
        config = replace(CONFIG, rank=rank, world_size=num_parts)
        with open_loader(coloured_index, config) as loader:
            for chunk in split(next(loader), 3):
                chunk.check()
                assert chunk.texts_per_image == 2
                found |= texts_of(chunk)
    assert len(found) == 12
    for sample, texts in found.items():
        rows, _ = captions.rows(np.array([sample]))
        encoded = [ids.tolist() for ids in encode_captions(captions.texts(rows))]
        assert [text[1:-1] for text in texts] == encoded


def test_each_text_is_shortened_by_draws_of_its_own(coloured_index: Path) -> None:
    """Both captions of a sample begin alike, and keep other words of that."""
    config = replace(CONFIG, captions=("caption=2",), context_length=5, text_reduction="random")
    with open_loader(coloured_index, config) as loader:
        texts = texts_of(next(loader))
        loader.seek(0)
        assert texts_of(next(loader)) == texts
    assert {len(text) for pair in texts.values() for text in pair} == {5}
    assert len({tuple(map(tuple, pair)) for pair in texts.values()}) > 6


def test_evaluation_serves_one_text(coloured_index: Path) -> None:
    with open_evaluation_loader(coloured_index, CONFIG) as loader:
        assert next(loader).texts_per_image == 1


def test_a_weight_that_is_no_number_of_texts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"whole numbers, got caption=0\.5"):
        replace(CONFIG, captions=("caption=0.5",))
