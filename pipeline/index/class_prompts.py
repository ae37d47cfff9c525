"""Class names and prompt templates of labelled pictures.

`classnames.txt` (line k names class k) and `zeroshot_classification_templates.txt` (one template a
line; `{c}` or `{}` stands for the class name) lie beside shards or class folders, as CLIP_benchmark
lays its sets out. Class folders without the two files take open_clip's class names where they are
named by WordNet ids of ImageNet-1k, or 0 to 999 as in ImageNet-V2; other folders take their own
names, with spaces for underscores. Their templates are open_clip's 80.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.pipeline.storage import read_text

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
_PLACE = "{c}"
_PLACES = (_PLACE, "{}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Class names and templates of a data set."""

    class_names: list[str]
    """Line k is class k of the labels."""
    templates: list[str]
    """Sentences with `{c}` where the name goes."""

    def of_class(self, number: int) -> list[str]:
        """All prompts of one class."""
        return [t.replace(_PLACE, self.class_names[number]) for t in self.templates]


def as_template(text: str, where: str) -> str:
    """A template with its place for the class name written as `{c}`.

    Raises:
        ValueError: it has no such place; names `where`.
    """
    if not any(place in text for place in _PLACES):
        raise ValueError(f"{where} must hold {{c}} or {{}}, the class name; got {text!r}")
    return text.replace("{}", _PLACE)


def read_prompts(folder: str | Path) -> Prompts:
    """Read the class names and templates that lie beside shards, or one folder above.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a line between class names is empty, or a template has no place for the name.
    """
    above = str(folder).rstrip("/").rpartition("/")[0]
    texts = []
    for name in (CLASS_NAMES, TEMPLATES):
        text = _first_of([f"{folder}/{name}", f"{above}/{name}"])
        if text is None:
            raise FileNotFoundError(f"zero-shot evaluation needs {folder}/{name}, one entry a line")
        texts.append(text)
    return Prompts(
        class_names=_names(texts[0], f"{CLASS_NAMES} of {folder}"),
        templates=_templates(texts[1], f"{TEMPLATES} of {folder}"),
    )


def prompts_of_folders(folder: str, folders: Sequence[str]) -> Prompts:
    """Class names and templates of class folders.

    Args:
        folder: holds the class folders, and may hold the two files.
        folders: names of the class folders in the order of `in_class_order`.

    Raises:
        ValueError: `classnames.txt` names more or fewer classes, a line between others is empty, or
            a template has no place for the name.
    """
    names, templates = (_first_of([f"{folder}/{name}"]) for name in (CLASS_NAMES, TEMPLATES))
    class_names = _names(names, f"{folder}/{CLASS_NAMES}") if names else _known_names(folders)
    if len(class_names) != len(folders):
        raise ValueError(
            f"{folder}/{CLASS_NAMES} names {len(class_names)} classes, and {len(folders)} folders "
            "there hold pictures: which line is whose cannot be told"
        )
    return Prompts(
        class_names=class_names,
        templates=_templates(templates, f"{folder}/{TEMPLATES}")
        if templates
        else imagenet_templates(),
    )


def in_class_order(folders: Iterable[str]) -> list[str]:
    """Names of class folders, sorted; by number if all are numbers."""
    names = sorted(folders)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def imagenet_templates() -> list[str]:
    """open_clip's 80 templates for ImageNet, with `{c}` where the name goes."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES  # takes seconds

    return [template(_PLACE) for template in OPENAI_IMAGENET_TEMPLATES]


def _names(text: str, where: str) -> list[str]:
    """Class names, one a line; an empty line between others would shift those after it."""
    found = _lines(text.rstrip())
    for number, line in enumerate(found, 1):
        if not line.strip():
            raise ValueError(f"{where}: line {number} is empty, and line k names class k")
    return found


def _templates(text: str, where: str) -> list[str]:
    found = [
        as_template(line, f"{where}, line {number}")
        for number, line in enumerate(_lines(text), 1)
        if line.strip()
    ]
    if not found:
        raise ValueError(f"{where} holds no template: write one a line, such as a photo of a {{c}}")
    return found


def _lines(text: str) -> list[str]:
    """Lines of a file; unlike `str.splitlines`, odd separators within a name end none."""
    return text.replace("\r\n", "\n").split("\n")


def _known_names(folders: Sequence[str]) -> list[str]:
    """open_clip's names of ImageNet classes, or the folders' own."""
    from open_clip import IMAGENET_CLASSNAMES  # takes seconds
    from timm.data.imagenet_info import ImageNetInfo

    numbers = {name: n for n, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if all(name in numbers for name in folders):
        return [IMAGENET_CLASSNAMES[numbers[name]] for name in folders]
    if list(folders) == [str(n) for n in range(len(IMAGENET_CLASSNAMES))]:
        return list(IMAGENET_CLASSNAMES)
    return [" ".join(name.replace("_", " ").split()) or name for name in folders]


def _first_of(locations: Sequence[str]) -> str | None:
    for location in locations:
        try:
            return read_text(location).removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
        except FileNotFoundError:
            continue
    return None
