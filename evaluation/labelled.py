"""Labelled sets: an index with labels, or a folder of class folders.

Where class names and templates come from is said in pipeline/index/class_prompts.py. A subset of
ImageNet's folders (-A, -R) is a choice among its own classes only, as is usual.

Legend: M pictures of a set, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tessera.evaluation.image_sets import IMAGE_SUFFIXES, ImageFiles, ImageSet, IndexedImages
from tessera.pipeline.index import INDEX_FILE
from tessera.pipeline.index.class_prompts import (
    CLASS_NAMES,
    Prompts,
    in_class_order,
    prompts_of_folders,
    read_prompts,
)
from tessera.pipeline.index.dataset import Dataset, open_dataset, parse_reference
from tessera.pipeline.storage import folder_of


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

    def files(self) -> set[str]:
        """Files of the pictures, or shards that hold them."""
        if self.paths:
            return {str(path.resolve()) for path in self.paths}
        return {shard.location for shard in open_dataset(self.place).index.shards}

    def pictures_in(self, files: set[str]) -> set[tuple[str, int]]:
        """The pictures in some of `files()`: the file of each, and the byte where it begins."""
        if self.paths:
            return {(each, 0) for each in self.files() & files}
        dataset = open_dataset(self.place)
        index = dataset.index
        locations = [shard.location for shard in index.shards]
        shards, offsets = dataset.of_samples(index.shard), dataset.of_samples(index.offset)
        wanted = np.isin(shards, [n for n, each in enumerate(locations) if each in files])
        return {
            (locations[shard], offset)
            for shard, offset in zip(shards[wanted].tolist(), offsets[wanted].tolist(), strict=True)
        }

    def images(self, num_threads: int) -> ImageSet:
        """The pictures, open; whoever asks closes them."""
        if self.paths:
            return ImageFiles(self.paths)
        return IndexedImages(open_dataset(self.place), num_threads)

    def prompts(self) -> Prompts:
        """Names and templates.

        Raises:
            FileNotFoundError: an index has none beside its shards.
            ValueError: there are fewer names than classes, in a folder of class folders also more;
                or a template has no place for the name.
        """
        if self.folders:
            prompts = prompts_of_folders(self.place, self.folders)
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


def class_folders(folder: Path) -> list[Path]:
    """Folders in a folder that hold pictures, in the order of their classes."""
    found = [each.name for each in folder.iterdir() if each.is_dir() and _pictures(each)]
    return [folder / name for name in in_class_order(found)]


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


def is_index(place: str) -> bool:
    """Whether a person named an index, or a selection of one."""
    return (parse_reference(place).index_dir / INDEX_FILE).is_file()
