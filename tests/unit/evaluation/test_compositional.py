"""SugarCrepe's and Winoground's files as they are published, and their scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tessera.evaluation.compositional import (
    open_sugarcrepe,
    open_winoground,
    score_sugarcrepe,
    score_winoground,
)
from tessera.evaluation.records import records
from tests.compositional_sets import write_sugarcrepe, write_winoground


def test_sugarcrepe_is_read(tmp_path: Path) -> None:
    data = open_sugarcrepe(str(write_sugarcrepe(tmp_path)))
    assert len(data.images) == 14
    assert data.kinds[:2] == ("add_att", "add_att")
    assert data.captions[13] == ("a picture of swap_obj 1", "no picture of swap_obj 1")
    assert open_sugarcrepe(str(tmp_path), str(tmp_path / "val2017")) == data


def test_winoground_is_read(tmp_path: Path) -> None:
    data = open_winoground(str(write_winoground(tmp_path)))
    assert [path.name for path in data.images[2]] == ["ex_2_img_0.png", "ex_2_img_1.png"]
    assert data.captions[0] == ("some plants near a light", "a light near plants")


def test_odd_line_separators_in_captions_end_no_example(tmp_path: Path) -> None:
    path = write_winoground(tmp_path) / "data" / "examples.jsonl"
    path.write_text(path.read_text("utf-8").replace("some plants", "some\u2028plants\x85"), "utf-8")
    assert open_winoground(str(tmp_path)).captions[2][0] == "some\u2028plants\x85 near a light"


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    write_sugarcrepe(tmp_path / "sugar")
    write_winoground(tmp_path / "wino")
    (tmp_path / "sugar" / "val2017" / "000000000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"7 of 14 pictures.*000000000001\.jpg.*val2017"):
        open_sugarcrepe(str(tmp_path / "sugar"))
    (tmp_path / "sugar" / "swap_att.json").write_text('{"0": {"caption": "a"}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"swap_att\.json is not in SugarCrepe's format"):
        open_sugarcrepe(str(tmp_path / "sugar"))
    (tmp_path / "sugar" / "add_obj.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"add_obj\.json"):
        open_sugarcrepe(str(tmp_path / "sugar"))
    (tmp_path / "wino" / "images" / "ex_1_img_0.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 6 pictures"):
        open_winoground(str(tmp_path / "wino"))
    (tmp_path / "wino" / "data" / "examples.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not in Winoground's format"):
        open_winoground(str(tmp_path / "wino"))
    (tmp_path / "wino" / "data" / "examples.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no example"):
        open_winoground(str(tmp_path / "wino"))
    with pytest.raises(FileNotFoundError, match=r"examples\.jsonl is missing"):
        open_winoground(str(tmp_path / "nothing"))


def test_sugarcrepe_averages_are_recomputed_from_the_files() -> None:
    kinds = ["add_att"] * 4 + ["add_obj"] * 2 + ["swap_att"] * 2
    right = [1, 1, 1, 0, 1, 0, 0, 0]
    similarity = torch.tensor([[0.5, 0.4 if hit else 0.5] for hit in right])
    result = score_sugarcrepe(similarity, kinds, "test")
    found = {(row.dataset, row.metric): (row.value, row.n) for row in result}
    assert found == {
        ("test/add_att", "acc"): (0.75, 4),
        ("test/add_obj", "acc"): (0.5, 2),
        ("test/swap_att", "acc"): (0.0, 2),
        ("test", "acc_add"): (0.625, 6),
        ("test", "acc_swap"): (0.0, 2),
        ("test", "acc_macro"): (pytest.approx(1.25 / 3), 8),
        ("test", "acc_micro"): (0.5, 8),
    }
    assert {row.chance for row in result} == {0.5}


def test_several_sugarcrepe_folders_keep_their_names() -> None:
    results = [
        score_sugarcrepe(torch.tensor([[0.5, 0.4]]), ["add_att"], name) for name in ("one", "two")
    ]
    both = records([*results[0], *results[1]], "model", "")
    assert [each["dataset"] for each in both] == ["one/add_att", "one", "two/add_att", "two"]
    alone = records(results[0], "model", "")
    assert [each["dataset"] for each in alone] == ["sugar_crepe/add_att", "sugar_crepe"]


def test_winoground_scores_are_the_definition() -> None:
    # [image, caption]: all right; text right but image wrong; image right but text wrong; a tie.
    similarity = torch.tensor(
        [
            [[0.9, 0.1], [0.1, 0.9]],
            [[0.5, 0.4], [0.6, 0.7]],
            [[0.5, 0.6], [0.4, 0.7]],
            [[0.5, 0.5], [0.5, 0.5]],
        ]
    )
    result = score_winoground(similarity, "test")
    assert {row.metric: row.value for row in result} == {
        "text_acc": 0.5,
        "image_acc": 0.5,
        "acc": 0.25,
    }


def test_guessing_gives_the_winoground_chance() -> None:
    similarity = torch.rand(20_000, 2, 2, generator=torch.Generator().manual_seed(0))
    result = score_winoground(similarity, "test")
    assert [row.chance for row in result] == pytest.approx([1 / 4, 1 / 4, 1 / 6])
    for row in result:
        assert row.value == pytest.approx(row.chance, abs=0.01)
