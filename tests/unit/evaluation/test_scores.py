"""Recalls and accuracies against slow definitions, and against what guessing gives."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tessera.evaluation import retrieval
from tessera.evaluation.labelled import read_prompts
from tessera.evaluation.retrieval import score_retrieval
from tessera.evaluation.scores import RETRIEVAL, ZERO_SHOT, Score, of_task
from tessera.evaluation.zero_shot import accuracies, score_zero_shot

ROOT = Path(__file__).resolve().parents[3]


def recalls(scores: list[Score], direction: str) -> dict[int, Score]:
    (rows,) = of_task(scores, RETRIEVAL)
    return rows.recalls(direction)


def values(scores: list[Score], direction: str) -> dict[int, float]:
    return {k: recall.value for k, recall in recalls(scores, direction).items()}


def features(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 16, generator=generator), dim=1)


def slow_recall(
    queries: torch.Tensor, answers: torch.Tensor, right: list[set[int]], k: int
) -> float:
    hits = 0
    for query, wanted in zip(queries, right, strict=True):
        order = (answers @ query).argsort(descending=True)[:k].tolist()
        hits += bool(wanted & set(order))
    return hits / len(queries)


def test_recalls_are_the_definition() -> None:
    images = features(700, 0)
    image_of_text = np.repeat(np.arange(700), np.random.default_rng(0).integers(1, 6, 700))
    texts = F.normalize(images[image_of_text] + 1.2 * features(len(image_of_text), 1), dim=1)
    scores = score_retrieval(images, texts, image_of_text, "test")
    own = [set(np.flatnonzero(image_of_text == i).tolist()) for i in range(700)]
    for k in (1, 5, 10):
        expected = slow_recall(images, texts, own, k)
        assert values(scores, "image_to_text")[k] == pytest.approx(expected)
        expected = slow_recall(texts, images, [{int(i)} for i in image_of_text], k)
        assert values(scores, "text_to_image")[k] == pytest.approx(expected)
    assert 0.2 < values(scores, "text_to_image")[1] < 0.9, "neither trivial nor hopeless"


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = features(130, 0)
    image_of_text = np.random.default_rng(0).permutation(np.repeat(np.arange(130), 3))
    texts = F.normalize(images[image_of_text] + 1.2 * features(390, 1), dim=1)
    whole = score_retrieval(images, texts, image_of_text, "test")
    monkeypatch.setattr(retrieval, "_IMAGE_TILE", 32)
    monkeypatch.setattr(retrieval, "_TEXT_TILE", 50)
    assert score_retrieval(images, texts, image_of_text, "test") == whole


def test_an_image_without_a_text_finds_nothing() -> None:
    scores = score_retrieval(torch.eye(4), torch.eye(4)[:2], np.array([0, 1]), "test")
    assert set(values(scores, "image_to_text").values()) == {0.5}
    assert recalls(scores, "image_to_text")[5].chance == 0.5


def test_features_that_are_no_numbers_score_nothing() -> None:
    broken = torch.full((50, 16), torch.nan)
    scores = score_retrieval(broken, broken, np.arange(50), "test")
    assert values(scores, "image_to_text")[10] == values(scores, "text_to_image")[10] == 0


def test_memory_of_a_large_search_is_bounded() -> None:
    """8,000 x 16,000 similarities are 0.5 GB; a process that computes them grows by far less."""
    script = (
        "import resource, numpy, torch; from evaluation.retrieval import ranks;"
        "draw = torch.Generator().manual_seed(0);"
        "images = torch.randn(8000, 8, generator=draw);"
        "texts = torch.randn(16000, 8, generator=draw);"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "ranks(images[:3000], texts[:6000], numpy.arange(6000) // 2); before = peak();"
        "ranks(images, texts, numpy.arange(16000) // 2); print(peak() - before)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120_000, "kB"


def test_guessing_reaches_the_chance_that_is_stated() -> None:
    image_of_text = np.repeat(np.arange(200), 5)
    found = [
        score_retrieval(features(200, 2 * s), features(1000, 2 * s + 1), image_of_text, "test")
        for s in range(12)
    ]
    for name in ("image_to_text", "text_to_image"):
        mean = np.mean([values(scores, name)[10] for scores in found])
        assert mean == pytest.approx(recalls(found[0], name)[10].chance, rel=0.25)


def test_collapsed_features_score_nothing() -> None:
    same = F.normalize(torch.ones(50, 16), dim=1)
    scores = score_retrieval(same, same, np.arange(50), "test")
    assert values(scores, "image_to_text")[10] == values(scores, "text_to_image")[10] == 0


def test_accuracies_are_the_definition() -> None:
    clear = [0.0, 9, 8, 7, 6, 5, 4]
    scores = torch.tensor([[9.0, 1, 0, 2, 3, 4, 5], [1.0, 2, 3, 4, 5, 6, 0], clear, clear])
    labels = torch.tensor([0, 0, 1, 2])
    run = score_zero_shot(scores, torch.eye(7), labels, list("abcdefg"), "test")
    (rows,) = of_task(run.scores, ZERO_SHOT)
    assert rows["acc1"].value == pytest.approx(2 / 4)
    assert rows["acc5"].value == pytest.approx(3 / 4)
    assert rows["mean_per_class_recall"].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert [rows[m].chance for m in ("acc1", "acc5")] == pytest.approx([1 / 7, 5 / 7])
    assert rows["acc1"].n == 4
    assert sorted(run.confusions) == [("a", "f", 1), ("c", "b", 1)]


def test_accuracies_of_features_on_a_gpu_are_counted_there() -> None:
    """Made-up CUDA tensors: another device raises, and so does the first number that is read."""
    with FakeTensorMode():
        features, labels = torch.zeros(6, 4, device="cuda"), torch.zeros(6, device="cuda").long()
        with pytest.raises(DataDependentOutputException):
            accuracies(features, features[:3], labels)


def test_missing_class_names_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"classnames\.txt"):
        read_prompts(tmp_path)
