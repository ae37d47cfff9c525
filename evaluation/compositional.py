"""Does the model read captions as sentences, or as bags of words?

SugarCrepe (Hsieh et al. 2023): a COCO picture, its caption, and one that differs in a word or in
the order of words, in seven json files: `{"0": {"filename", "caption", "negative_caption"}, ...}`.
Winoground (Thrush et al. 2022): two pictures and two captions of the same words, in lines of
`examples.jsonl`: `{"image_0", "image_1", "caption_0", "caption_1", ...}`.

A tie counts against the model.

Legend: K examples, d length of a feature.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tessera.evaluation.encoder import Encoder
from tessera.evaluation.image_sets import IMAGE_SUFFIXES, ImageFiles
from tessera.evaluation.scores import SUGARCREPE, WINOGROUND, Score

SUGARCREPE_FILES = (
    *("add_att", "add_obj"),
    *("replace_att", "replace_obj", "replace_rel"),
    *("swap_att", "swap_obj"),
)
_EXAMPLES = "examples.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class SugarCrepe:
    """The seven files, read."""

    place: str
    """Folder of the json files."""
    kinds: tuple[str, ...]
    """[K] file of each example."""
    images: tuple[Path, ...]
    """[K] its picture."""
    captions: tuple[tuple[str, str], ...]
    """[K] its right and its wrong caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Winoground:
    """A folder of pairs of pictures and captions, read."""

    place: str
    """Folder of `examples.jsonl`."""
    images: tuple[tuple[Path, Path], ...]
    """[K] both pictures."""
    captions: tuple[tuple[str, str], ...]
    """[K] both captions, each of the picture of the same number."""


def open_sugarcrepe(folder: str, images: str = "") -> SugarCrepe:
    """Read SugarCrepe's files.

    Args:
        folder: holds the seven json files, or a folder `data` with them.
        images: COCO's val2017 pictures; empty is `folder/val2017`.

    Raises:
        FileNotFoundError: a file or a picture is missing.
        ValueError: a file is not in SugarCrepe's format.
    """
    root = Path(folder)
    pictures = Path(images) if images else root / "val2017"
    if not (root / f"{SUGARCREPE_FILES[0]}.json").is_file():
        root /= "data"
    kinds, paths, captions = [], [], []
    for kind in SUGARCREPE_FILES:
        path = root / f"{kind}.json"
        if not path.is_file():
            raise FileNotFoundError(f"SugarCrepe's {path} is missing: it has seven json files")
        try:
            for example in json.loads(path.read_text(encoding="utf-8")).values():
                kinds.append(kind)
                paths.append(pictures / example["filename"])
                captions.append((example["caption"], example["negative_caption"]))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is not in SugarCrepe's format: {error!r}") from error
    _require(paths, "give --sugarcrepe-images the folder of COCO's val2017 pictures")
    return SugarCrepe(
        place=folder, kinds=tuple(kinds), images=tuple(paths), captions=tuple(captions)
    )


def open_winoground(folder: str) -> Winoground:
    """Read a folder in Winoground's layout: `examples.jsonl`, and `images/` with the pictures.

    The jsonl may lie in `data/`; a picture may be named without its ending, as Winoground's are.

    Raises:
        FileNotFoundError: a file or a picture is missing.
        ValueError: the file is not in Winoground's format.
    """
    root = Path(folder)
    path = next(
        (p for p in (root / _EXAMPLES, root / "data" / _EXAMPLES) if p.is_file()), root / _EXAMPLES
    )
    if not path.is_file():
        raise FileNotFoundError(f"Winoground's {path} is missing: one example a line")
    try:
        # Not splitlines: U+2028 and the like may stand in a caption.
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
        images = tuple(tuple(_picture(root, each[f"image_{n}"]) for n in (0, 1)) for each in lines)
        captions = tuple((each["caption_0"], each["caption_1"]) for each in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not in Winoground's format: {error!r}") from error
    if not lines:
        raise ValueError(f"{path} holds no example")
    _require([each for pair in images for each in pair], f"they belong into {root / 'images'}")
    return Winoground(place=folder, images=_pairs(images), captions=captions)


def evaluate_sugarcrepe(encoder: Encoder, data: SugarCrepe) -> list[Score] | None:
    """Tell right captions from wrong ones; every process must ask, rank 0 gets the scores.

    Raises:
        ValueError: a picture cannot be decoded.
    """
    paths = sorted(set(data.images))
    place_of = {path: place for place, path in enumerate(paths)}
    images = _all_images(encoder, f"sugarcrepe {data.place}", paths)
    texts = encoder.prompts([caption for pair in data.captions for caption in pair])
    if not encoder.is_main:
        return None
    own = images[[place_of[path] for path in data.images]]
    similarity = torch.einsum("kd,kcd->kc", own, texts.unflatten(0, (-1, 2)))
    return score_sugarcrepe(similarity, data.kinds, data.place)


def score_sugarcrepe(similarity: Tensor, kinds: Sequence[str], dataset: str) -> list[Score]:
    """Share of examples whose right caption is strictly nearer, for each file, and their means.

    Args:
        similarity: [K, 2] of the picture to the right and the wrong caption.
        kinds: [K] file of each example.
        dataset: name for the result.
    """
    right = (similarity[:, 0] > similarity[:, 1]).tolist()
    hits: dict[str, list[bool]] = {kind: [] for kind in SUGARCREPE_FILES}
    for kind, hit in zip(kinds, right, strict=True):
        hits[kind].append(hit)
    found = {kind: fmean(each) for kind, each in hits.items() if each}
    groups: dict[str, list[float]] = {}
    for kind, share in found.items():
        groups.setdefault(kind.partition("_")[0], []).append(share)
    rows = [(f"{dataset}/{kind}", "acc", share, len(hits[kind])) for kind, share in found.items()]
    for name, shares in groups.items():
        count = sum(kind.partition("_")[0] == name for kind in kinds)
        rows.append((dataset, f"acc_{name}", fmean(shares), count))
    rows += [
        (dataset, "acc_macro", fmean(found.values()), len(right)),
        (dataset, "acc_micro", fmean(right), len(right)),
    ]
    return [
        Score(dataset=place, task=SUGARCREPE, metric=metric, value=value, chance=0.5, n=n)
        for place, metric, value, n in rows
    ]


def evaluate_winoground(encoder: Encoder, data: Winoground) -> list[Score] | None:
    """Match two captions to two pictures; every process must ask, rank 0 gets the scores.

    Raises:
        ValueError: a picture cannot be decoded.
    """
    paths = [path for pair in data.images for path in pair]
    images = _all_images(encoder, f"winoground {data.place}", paths)
    texts = encoder.prompts([caption for pair in data.captions for caption in pair])
    if not encoder.is_main:
        return None
    pairs = images.unflatten(0, (-1, 2)), texts.unflatten(0, (-1, 2))
    return score_winoground(torch.einsum("kid,kcd->kic", *pairs), data.place)


def score_winoground(similarity: Tensor, dataset: str) -> list[Score]:
    """Text, image and group score (Thrush et al. 2022, section 4.1).

    Args:
        similarity: [K, 2, 2] of picture i to caption c.
        dataset: name for the result.
    """
    own = similarity.diagonal(dim1=1, dim2=2)
    other_text = torch.stack([similarity[:, 0, 1], similarity[:, 1, 0]], dim=1)
    other_image = other_text.flip(1)
    text = (own > other_text).all(dim=1)
    image = (own > other_image).all(dim=1)
    rows = (("text_acc", text, 1 / 4), ("image_acc", image, 1 / 4), ("acc", text & image, 1 / 6))
    return [
        Score(
            dataset=dataset,
            task=WINOGROUND,
            metric=metric,
            value=right.double().mean().item(),
            chance=chance,
            n=len(similarity),
        )
        for metric, right, chance in rows
    ]


def _all_images(encoder: Encoder, key: str, paths: Sequence[Path]) -> Tensor:
    """Features of pictures none of which may be missing."""
    images = encoder.images(key, ImageFiles(paths))
    if images.num_bad:
        bad = sorted(set(range(len(paths))) - set(images.places.tolist()))
        raise ValueError(f"{len(bad)} pictures cannot be decoded, such as {paths[bad[0]]}")
    return images.features


def _picture(root: Path, name: Any) -> Path:
    path = root / "images" / str(name)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path
    return next(
        (p for p in (path.with_name(path.name + end) for end in IMAGE_SUFFIXES) if p.is_file()),
        path,
    )


def _pairs(images: Sequence[tuple[Path, ...]]) -> tuple[tuple[Path, Path], ...]:
    return tuple((pair[0], pair[1]) for pair in images)


def _require(paths: Sequence[Path], remedy: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} pictures are missing, such as {missing[0]}: {remedy}"
        )
