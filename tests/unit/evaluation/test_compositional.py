"""SugarCrepe's and Winoground's files as they are published, and their scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation.compositional import (
    SUGARCREPE_FILES,
    open_sugarcrepe,
    open_winoground,
    score_sugarcrepe,
    score_winoground,
)


def write_sugarcrepe(folder: Path) -> Path:
    """Two examples in each file; numbers have gaps, as in the published ones."""
    (folder / "val2017").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (40, 30), (200 * number, 90, 20)).save(
            folder / "val2017" / f"{number:012d}.jpg"
        )
    for kind in SUGARCREPE_FILES:
        examples = {
            str(3 * n): {
                "filename": f"{n:012d}.jpg",
                "caption": f"a picture of {kind} {n}",
                "negative_caption": f"no picture of {kind} {n}",
            }
            for n in range(2)
        }
        (folder / f"{kind}.json").write_text(json.dumps(examples), encoding="utf-8")
    return folder


def write_winoground(folder: Path) -> Path:
    """Three examples; pictures are named without their ending, as in the published file."""
    (folder / "images").mkdir(parents=True)
    (folder / "data").mkdir()
    lines = []
    for n in range(3):
        for side in (0, 1):
            name = f"ex_{n}_img_{side}.png"
            Image.new("RGB", (32, 48), (80 * n, 100 * side, 50)).save(folder / "images" / name)
        example = {"id": n, "image_0": f"ex_{n}_img_0", "image_1": f"ex_{n}_img_1"}
        captions = {"caption_0": "some plants near a light", "caption_1": "a light near plants"}
        lines.append(json.dumps({**example, **captions, "tag": "Noun", "num_main_preds": 1}))
    (folder / "data" / "examples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


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
    with pytest.raises(FileNotFoundError, match=r"examples\.jsonl is missing"):
        open_winoground(str(tmp_path / "nothing"))


def test_sugarcrepe_averages_are_recomputed_from_the_files() -> None:
    kinds = ["add_att"] * 4 + ["add_obj"] * 2 + ["swap_att"] * 2
    right = [1, 1, 1, 0, 1, 0, 0, 0]
    similarity = torch.tensor([[0.5, 0.4 if hit else 0.5] for hit in right])
    result = score_sugarcrepe(similarity, kinds, "test")
    assert result.accuracies == {"add_att": 0.75, "add_obj": 0.5, "swap_att": 0.0}
    assert result.counts == {"add_att": 4, "add_obj": 2, "swap_att": 2}
    assert result.categories == {"add": 0.625, "swap": 0.0}
    assert result.macro == pytest.approx(1.25 / 3)
    assert result.micro == pytest.approx(0.5)


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
    assert (result.text_score, result.image_score, result.group_score) == (0.5, 0.5, 0.25)


def test_guessing_gives_the_winoground_chance() -> None:
    similarity = torch.rand(20_000, 2, 2, generator=torch.Generator().manual_seed(0))
    result = score_winoground(similarity, "test")
    assert result.text_score == pytest.approx(1 / 4, abs=0.01)
    assert result.image_score == pytest.approx(1 / 4, abs=0.01)
    assert result.group_score == pytest.approx(1 / 6, abs=0.01)
