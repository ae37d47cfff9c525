"""Labelled sets that are plain folders, ImageNet's among them."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
from PIL import Image

from tessera.evaluation.labelled import open_labelled, read_prompts


def write_class_folders(folder: Path, names: list[str], per_class: int = 2) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for n in range(per_class):
            Image.new("RGB", (20, 30), (number, n, 0)).save(folder / name / f"{n}.png")
    return folder


def test_class_folders_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    found = open_labelled(str(write_class_folders(tmp_path, ["tree", "old_car", "bird"])))
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.prompts().class_names == ["bird", "old car", "tree"]
    assert found.prompts().templates == [t("{c}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert found.prompts().of_class(1)[0] == open_clip.OPENAI_IMAGENET_TEMPLATES[0]("old car")
    images = found.images(1)
    assert [Path(images.name(place)).parent.name for place in (0, 5)] == ["bird", "tree"]


def test_a_folder_may_bring_its_own_names_and_templates(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["a", "b"])
    (tmp_path / "classnames.txt").write_text("alpha\nbeta\n\n", encoding="utf-8")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("one {c}\n", encoding="utf-8")
    prompts = open_labelled(str(tmp_path)).prompts()
    assert prompts.class_names == ["alpha", "beta"], "an empty line is no class"
    assert prompts.of_class(1) == ["one beta"]
    (tmp_path / "classnames.txt").write_text("alpha\n", encoding="utf-8")
    with pytest.raises(ValueError, match="names 1 classes, and 2 folders"):
        open_labelled(str(tmp_path)).prompts()


def test_a_class_folder_without_pictures_shifts_no_names(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["a", "c"])
    (tmp_path / "b").mkdir()
    (tmp_path / "classnames.txt").write_text("alpha\nbeta\ngamma\n", encoding="utf-8")
    with pytest.raises(ValueError, match="names 3 classes, and 2 folders"):
        open_labelled(str(tmp_path)).prompts()


def test_subsets_of_imagenet_take_its_names(tmp_path: Path) -> None:
    # Goldfish and toilet paper: the second and the last class of ImageNet-1k.
    found = open_labelled(str(write_class_folders(tmp_path, ["n15075141", "n01443537"])))
    assert found.prompts().class_names == [
        open_clip.IMAGENET_CLASSNAMES[1],
        open_clip.IMAGENET_CLASSNAMES[999],
    ]


def test_numbered_folders_are_the_classes_of_imagenet(tmp_path: Path) -> None:
    names = [str(n) for n in range(1000)]
    found = open_labelled(str(write_class_folders(tmp_path, names, per_class=1)))
    assert found.folders == tuple(names), "by number, not by spelling"
    assert found.prompts().class_names == list(open_clip.IMAGENET_CLASSNAMES)


@pytest.mark.parametrize("template", ["a {} on grass", "a {c} on grass"])
def test_both_marks_of_a_place_are_taken(template: str, tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("cat\ndog\n", encoding="utf-8")
    path = tmp_path / "zeroshot_classification_templates.txt"
    path.write_text(f"\ufeff{template}\r\n\r\n", encoding="utf-8")
    assert read_prompts(tmp_path).of_class(1) == ["a dog on grass"]
    write_class_folders(tmp_path, ["cat", "dog"])
    assert open_labelled(str(tmp_path)).prompts().of_class(0) == ["a cat on grass"]


@pytest.mark.parametrize("templates", ["a {}\na photo\n", "{name}", "{0}", "\n\n"])
def test_a_template_without_a_place_for_the_name_is_refused(templates: str, tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("cat\ndog\n", encoding="utf-8")
    path = tmp_path / "zeroshot_classification_templates.txt"
    path.write_text(templates, encoding="utf-8")
    with pytest.raises(ValueError, match=r"zeroshot_classification_templates\.txt.*\{c\}"):
        read_prompts(tmp_path)
    write_class_folders(tmp_path, ["cat", "dog"])
    with pytest.raises(ValueError, match=r"zeroshot_classification_templates\.txt.*\{c\}"):
        open_labelled(str(tmp_path)).prompts()


def test_names_may_lie_one_folder_above_the_shards(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "classnames.txt").write_text("cat\ndog\n", encoding="utf-8")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\n", encoding="utf-8")
    assert read_prompts(tmp_path / "test").of_class(1) == ["a dog"]


def test_an_empty_line_shifts_no_names(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("cat\n \ndog\n", encoding="utf-8")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"classnames\.txt .*line 2 is empty"):
        read_prompts(tmp_path)


def test_odd_separators_within_a_name_end_no_line(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_bytes("cat\u2028like\r\ndog\x85\r\n".encode())
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\n", encoding="utf-8")
    assert read_prompts(tmp_path).class_names[0] == "cat\u2028like"
    assert len(read_prompts(tmp_path).class_names) == 2


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither an index nor a folder of class folders"):
        open_labelled(str(tmp_path))
