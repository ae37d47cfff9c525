"""Pairs, loss and probe beside what they should be by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tessera.model.losses.ranks import Ranks
from tessera.pipeline.index.dataset import open_dataset
from tessera.pipeline.index.embeddings import EncoderRecord, write_text_embeddings
from tessera.tools.llm_finetuning.loss import info_nce
from tessera.tools.llm_finetuning.pairs import PairDraw, TextPool

NO_IDS = torch.empty(0, dtype=torch.int64)


@pytest.fixture
def pool(caption_index: Path) -> TextPool:
    return TextPool(open_dataset(caption_index), ["caption"])


def texts_of(pool: TextPool, sample: int) -> list[str]:
    return pool.texts(pool.of_samples(np.array([sample]))[0])


def test_a_pair_is_of_two_different_texts_of_one_image(pool: TextPool) -> None:
    draw = PairDraw(pool, seed=3, num_samples=48)
    seen: dict[int, set[tuple[int, int]]] = {}
    for step in range(40):
        pairs = draw.step(step, 47)
        assert sorted(pairs.sample_ids) == list(range(47))
        for sample, query, document in zip(
            pairs.sample_ids.tolist(), pairs.queries, pairs.documents, strict=True
        ):
            texts = texts_of(pool, sample)
            places = (texts.index(query), texts.index(document))
            assert places[0] != places[1]
            seen.setdefault(sample, set()).add(places)
    count = len(texts_of(pool, 0))
    # All ordered pairs turn up, over all samples.
    assert set().union(*seen.values()) == {
        (a, b) for a in range(count) for b in range(count) if a != b
    }


def test_the_batch_of_a_step_is_the_same_in_any_number_of_parts(pool: TextPool) -> None:
    draw = PairDraw(pool, seed=3, num_samples=48)
    whole = draw.step(2, 16)
    parts = [draw.step(2, 16, rank, 4) for rank in range(4)]
    assert [text for part in parts for text in part.queries] == whole.queries
    assert [text for part in parts for text in part.documents] == whole.documents
    assert draw.step(3, 16).queries != whole.queries


def test_a_hard_negative_is_the_closest_candidate_of_another_image(
    pool: TextPool, caption_index: Path
) -> None:
    index = open_dataset(caption_index).index
    table = index.captions()
    # On a circle, in the order of the samples: the closest is that of the next sample.
    angle = 2 * np.pi * table.sample / 48
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 7
    record = EncoderRecord(
        id="circle", path="", revision="", pooling="mean", dim=2, dtype="float32"
    )
    store = write_text_embeddings(index, "circle", "caption", record, [vectors])
    draw = PairDraw(pool, seed=3, num_samples=48, embeddings={"caption": store}, num_candidates=400)
    pairs = draw.step(0, 47)
    apart = np.abs(pairs.negative_ids - pairs.sample_ids)
    assert (np.minimum(apart, 48 - apart) <= 2).all()
    assert (apart > 0).all()
    for sample, text in zip(pairs.negative_ids.tolist(), pairs.negatives, strict=True):
        assert text in texts_of(pool, sample)
    few = PairDraw(pool, seed=3, num_samples=48, embeddings={"caption": store}, num_candidates=1)
    apart = np.abs(few.step(0, 47).negative_ids - few.step(0, 47).sample_ids)
    assert np.minimum(apart, 48 - apart).mean() > 5


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("num_negatives", [0, 6])
def test_the_loss_is_that_of_a_plain_loop(both_ways: bool, num_negatives: int) -> None:
    torch.manual_seed(0)
    queries, documents = torch.randn(6, 5), torch.randn(6, 5)
    negatives = torch.randn(num_negatives, 5)
    ids = torch.tensor([4, 9, 2, 4, 7, 1])  # the fourth is of the first's image again
    negative_ids = torch.tensor([9, 4, 3, 3, 3, 3])[:num_negatives]
    found = info_nce(
        queries, documents, negatives, ids, negative_ids,
        scale=20.0, both_ways=both_ways, ranks=Ranks(),
    )  # fmt: skip

    def one_way(rows: torch.Tensor, others: torch.Tensor, other_ids: list[int]) -> float:
        total = 0.0
        for i in range(6):
            cosines = functional.cosine_similarity(rows[i][None].double(), others.double())
            allowed = [j for j, sample in enumerate(other_ids) if sample != ids[i] or j == i]
            total -= torch.log_softmax(20.0 * cosines[allowed], 0)[allowed.index(i)].item()
        return total / 6

    listed = [*ids.tolist(), *negative_ids.tolist()]
    expected = one_way(queries, torch.cat([documents, negatives]), listed)
    if both_ways:
        expected = (expected + one_way(documents, queries, ids.tolist())) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)
