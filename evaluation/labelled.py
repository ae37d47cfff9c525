"""Labelled sets: an index with labels, or a folder of class folders.

Beside the shards of an index, or one folder above, lie `classnames.txt` (line k names class k) and
`zeroshot_classification_templates.txt` (one template a line, `{c}` stands for the name), as
CLIP_benchmark lays its sets out. A class folder may hold the two files as well; without them,
folders named by WordNet ids of ImageNet-1k, or 0 to 999 as in ImageNet-V2, take open_clip's class
names and its 80 templates, and other folders their own names and the same templates. A subset of
ImageNet's folders (-A, -R) is a choice among its own classes only, as is usual.

Legend: M pictures of a set, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.image_sets import IMAGE_SUFFIXES, ImageFiles, ImageSet, IndexedImages
from pipeline.index import INDEX_FILE
from pipeline.selection import Dataset, open_dataset, parse_reference
from pipeline.storage import folder_of, read_text

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Class names and templates of a data set."""

    class_names: list[str]
    """Line k is class k of the labels."""
    templates: list[str]
    """Sentences with `{c}` where the name goes."""

    def of_class(self, number: int) -> list[str]:
        """All prompts of one class."""
        return [t.replace("{c}", self.class_names[number]) for t in self.templates]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSet:
    """Pictures with classes, and where their names are to be found."""

    place: str
    """As a person named it."""
    labels: NDArray[np.int64]
    """[M] class of each picture; -1 where it has none."""
    folders: tuple[str, ...]
    """Names of the class folders in the order of the classes; empty for an index."""
    paths: tuple[Path, ...]
    """[M] files of the pictures; empty for an index."""

    @property
    def num_classes(self) -> int:
        """Classes that occur, or have a folder."""
        return len(self.folders) or int(self.labels.max()) + 1

    def images(self, num_threads: int) -> ImageSet:
        """The pictures, open; whoever asks closes them."""
        if self.paths:
            return ImageFiles(self.paths)
        return IndexedImages(open_dataset(self.place), num_threads)

    def prompts(self) -> Prompts:
        """Names and templates.

        Raises:
            FileNotFoundError: an index has none beside its shards.
            ValueError: there are fewer names than classes; in a folder of class folders, or more.
        """
        if self.folders:
            prompts = _prompts_of_folders(Path(self.place), self.folders)
        else:
            index = open_dataset(self.place).index
            prompts = read_prompts(folder_of(index.shards[0].location))
        highest = int(self.labels.max())
        if highest >= len(prompts.class_names):
            raise ValueError(
                f"{self.place} has label {highest}, but {CLASS_NAMES} only "
                f"{len(prompts.class_names)} lines"
            )
        return prompts


def open_labelled(place: str) -> LabelledSet:
    """Open a labelled set.

    Args:
        place: `INDEX`, `INDEX@SELECTION`, or a folder of class folders.

    Raises:
        FileNotFoundError: there is neither an index nor a class folder.
        ValueError: the index has no labels, or a folder no pictures.
    """
    folder = Path(place)
    if folder.is_dir() and not (folder / INDEX_FILE).is_file():
        return _open_folders(folder)
    dataset = open_dataset(place)
    labels = _labels(dataset)
    if labels.max(initial=-1) < 0:
        raise ValueError(f"{place} has no class labels: its samples have no .cls member")
    return LabelledSet(place=place, labels=labels, folders=(), paths=())


def read_prompts(folder: str | Path) -> Prompts:
    """Read the class names and templates that lie beside shards, or one folder above.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a line between others is empty.
    """
    above = str(folder).rstrip("/").rpartition("/")[0]
    lines = []
    for name in (CLASS_NAMES, TEMPLATES):
        text = _first_of([f"{folder}/{name}", f"{above}/{name}"])
        if text is None:
            msg = f"zero-shot evaluation needs {folder}/{name}, one entry a line"
            raise FileNotFoundError(msg)
        lines.append(text)
    return Prompts(
        class_names=_names(lines[0], f"{CLASS_NAMES} of {folder}"), templates=_entries(lines[1])
    )


def class_folders(folder: Path) -> list[Path]:
    """Folders in a folder that hold pictures, in the order of their classes.

    By name; if all are numbers, by number.
    """
    found = [each for each in folder.iterdir() if each.is_dir() and _pictures(each)]
    if found and all(each.name.isdecimal() for each in found):
        return sorted(found, key=lambda each: int(each.name))
    return sorted(found)


def _open_folders(folder: Path) -> LabelledSet:
    folders = class_folders(folder)
    if not folders:
        raise FileNotFoundError(
            f"{folder} is neither an index nor a folder of class folders with pictures; shards are "
            f"indexed by `python tools/index_shards.py {folder} --out INDEX`"
        )
    groups = [_pictures(each) for each in folders]
    return LabelledSet(
        place=str(folder),
        labels=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
        folders=tuple(each.name for each in folders),
        paths=tuple(path for group in groups for path in group),
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _labels(dataset: Dataset) -> NDArray[np.int64]:
    return dataset.of_samples(dataset.index.label).astype(np.int64)


def _prompts_of_folders(folder: Path, folders: tuple[str, ...]) -> Prompts:
    names, templates = (_first_of([f"{folder}/{name}"]) for name in (CLASS_NAMES, TEMPLATES))
    class_names = _names(names, str(folder / CLASS_NAMES)) if names else _known_names(folders)
    if len(class_names) != len(folders):
        raise ValueError(
            f"{folder / CLASS_NAMES} names {len(class_names)} classes, and {len(folders)} folders "
            "there hold pictures: which line is whose cannot be told"
        )
    return Prompts(
        class_names=class_names,
        templates=_entries(templates) if templates else imagenet_templates(),
    )


def _names(text: str, where: str) -> list[str]:
    """Class names, one a line; an empty line between others would shift those behind it."""
    found = text.rstrip().splitlines()
    for number, line in enumerate(found, 1):
        if not line.strip():
            raise ValueError(f"{where}: line {number} is empty, and line k names class k")
    return found


def _entries(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def _known_names(folders: tuple[str, ...]) -> list[str]:
    """open_clip's names of ImageNet classes, or the folders' own."""
    from open_clip import IMAGENET_CLASSNAMES  # takes seconds
    from timm.data.imagenet_info import ImageNetInfo

    numbers = {name: n for n, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if all(name in numbers for name in folders):
        return [IMAGENET_CLASSNAMES[numbers[name]] for name in folders]
    if folders == tuple(map(str, range(len(IMAGENET_CLASSNAMES)))):
        return list(IMAGENET_CLASSNAMES)
    return [name.replace("_", " ") for name in folders]


def imagenet_templates() -> list[str]:
    """open_clip's 80 templates for ImageNet, with `{c}` where the name goes."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]


def _first_of(locations: list[str]) -> str | None:
    for location in locations:
        try:
            return read_text(location)
        except FileNotFoundError:
            continue
    return None


def is_index(place: str) -> bool:
    """Whether a person named an index, or a selection of one."""
    return (parse_reference(place).index_dir / INDEX_FILE).is_file()
