"""Rows of scores: what groups them, how they are stored, and what is made of older records."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tessera.evaluation.records import lines, records
from tessera.evaluation.scores import (
    LINEAR_PROBE,
    RETRIEVAL,
    ZERO_SHOT,
    Score,
    curves,
    few_shot_metric,
    from_json,
    mean_recall,
    of_task,
    renamed,
    shots_of,
    to_json,
)

ACC1 = Score(dataset="pets", task=ZERO_SHOT, metric="acc1", value=0.4, chance=0.1, n=50)
PROBE = [
    replace(ACC1, task=LINEAR_PROBE, metric=metric, value=value, chance=chance, train="pets-train")
    for metric, value, chance in (
        ("lp_acc1", 0.5, 0.1),
        ("lp_acc5", 0.9, 0.5),
        ("lp_mean_per_class_recall", 0.5, 0.1),
        ("weight_decay", 1e-3, None),
        (few_shot_metric(4), 0.2, 0.1),
        (few_shot_metric(4), 0.4, 0.1),
        (few_shot_metric(16), 0.6, 0.1),
    )
]
BEFORE = {
    "zero_shot": [{"dataset": "pets", "acc1": 0.4, "chance": 0.1, "num_images": 50}],
    "retrieval": [
        {
            "dataset": "flickr",
            "num_images": 10,
            "num_texts": 50,
            "image_to_text": {"1": 0.3, "5": 0.5},
            "text_to_image": {"1": 0.2, "5": 0.4},
            "chance": {
                "image_to_text": {"1": 0.1, "5": 0.4},
                "text_to_image": {"1": 0.1, "5": 0.5},
            },
        }
    ],
    "linear_probe": [
        {"dataset": "pets", "train": "t", "acc1": 0.6, "chance": 0.1, "num_images": 50}
    ],
    "few_shot": [
        {"dataset": "pets", "shots": 4, "acc1": [0.2, 0.3], "chance": 0.1, "num_images": 50}
    ],
    "sugarcrepe": [{"dataset": "crepe", "macro": 0.7, "chance": 0.5, "counts": {"add_att": 9}}],
}


def test_rows_survive_a_record() -> None:
    scores = [ACC1, *PROBE]
    assert from_json(json.loads(json.dumps({"step": 3, **to_json(scores)}))) == scores


def test_records_of_the_first_edition_are_read() -> None:
    scores = from_json(json.loads(json.dumps(BEFORE)))
    assert curves(scores) == {
        "top-1, pets": 0.4,
        "image to text R@1, flickr": 0.3,
        "text to image R@1, flickr": 0.2,
        "linear probe, pets": 0.6,
        "SugarCrepe, crepe": 0.7,
    }
    assert scores[0] == ACC1
    (pairs,) = of_task(scores, RETRIEVAL)
    assert mean_recall(pairs) == pytest.approx((0.35, 0.275, 10))
    assert from_json({"zero_shot": [], "retrieval": []}) == []


def test_rows_of_one_metric_are_draws() -> None:
    (rows,) = of_task(PROBE, LINEAR_PROBE)
    assert shots_of(rows) == [4, 16]
    assert rows.draws(few_shot_metric(4)) == [0.2, 0.4]
    few = [each for each in records(PROBE, "m", "p") if each["metrics"]["fewshot_k"] == 4]
    assert few[0]["metrics"]["lp_acc1"] == pytest.approx(0.3)
    assert few[0]["metrics"]["lp_acc1_of_draws"] == [0.2, 0.4]
    assert "4-shot pets: 30.0%, standard deviation 14.1% over 2 draws" in lines(PROBE)[1]


def test_probes_of_two_training_sets_stay_apart() -> None:
    other = [replace(row, train="more", value=row.value / 2) for row in PROBE]
    found = [r for r in records([*PROBE, *other], "m", "p") if r["metrics"]["fewshot_k"] == -1]
    assert [each["metrics"]["lp_acc1"] for each in found] == [0.5, 0.25]
    assert {each["dataset"] for each in found} == {"pets"}


def test_data_sets_may_be_renamed() -> None:
    found = renamed(PROBE[:1], {"pets": "a", "pets-train": "b"})
    assert (found[0].dataset, found[0].train) == ("a", "b")
