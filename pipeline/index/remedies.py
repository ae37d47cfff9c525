"""What to do about samples that were not found: one line for each cause that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tessera.pipeline.index.clues import Clues
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.rejection import Reason, Rejection
from tessera.pipeline.printable import printable

_IMAGE_ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "img", "image")
_TEXT_ENDINGS = ("txt", "text", "caption", "captions", "cap")
_CAPTION_WORDS = ("caption", "sentence", "text", "description", "title", "alt")
_MOST_SHOWN = 6
_MANY = 0.1
"""Share of the samples from which a reason is common enough to show the suffixes."""


def remedies(
    rejections: Mapping[str, int], clues: Clues, options: ScanOptions, num_samples: int
) -> list[str]:
    """Lines for a person: what was seen, and which option or command helps.

    Args:
        rejections: samples that cannot be used, by reason.
        clues: what the scans saw.
        options: that the scans were made with.
        num_samples: usable samples.
    """
    missing_image = rejections.get(Reason.MISSING_IMAGE, 0)
    missing_caption = rejections.get(Reason.MISSING_CAPTION, 0)
    missing = missing_image + missing_caption + rejections.get(Reason.BAD_LABEL, 0)
    found: list[str] = []
    if missing > _MANY * (missing + num_samples):
        found.append(f"suffixes found: {_counted(clues.suffixes)}")
    if clues.num_apart:
        found.append(
            f"the members of {clues.num_apart} samples are not neighbours in their tar: pack it "
            "again sorted by name, with `tar --sort=name -cf NEW.tar FOLDER`"
        )
    if _has_dotted_names(clues, options):
        example = next(s for s in clues.suffixes if _is_dotted(s))
        found.append(
            f"names have dots before the suffix (such as .{example}), and a key ends at the first "
            "dot, as in webdataset: --key-to-last-dot ends it at the last"
        )
    else:
        found += _other_suffixes(missing_image, missing_caption, clues, options)
    if missing_caption:
        found += _other_captions(clues, options)
    found += _repeated(clues, options)
    found += _unused(clues, options, missing_caption)
    return [printable(line) for line in found]


def example_lines(examples: Mapping[str, Iterable[Rejection]]) -> list[str]:
    """The first rejected samples of each reason, a line each."""
    return [
        printable(f"{reason}: {each.shard}: {each.member or each.key}: {each.detail}")
        for reason, found in examples.items()
        for each in found
    ]


def _counted(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda each: -each[1])
    shown = ", ".join(f".{suffix} ({count})" for suffix, count in most[:_MOST_SHOWN])
    return shown + (f" and {len(most) - _MOST_SHOWN} more" if len(most) > _MOST_SHOWN else "")


def _is_dotted(suffix: str) -> bool:
    return "." in suffix and suffix.rpartition(".")[2] in (*_IMAGE_ENDINGS, *_TEXT_ENDINGS)


def _has_dotted_names(clues: Clues, options: ScanOptions) -> bool:
    """Whether suffixes with dots are many and rare: then they are parts of names."""
    dotted = [count for suffix, count in clues.suffixes.items() if _is_dotted(suffix)]
    return not options.key_to_last_dot and len(dotted) > 2 and sum(dotted) < 2 * len(dotted)


def _other_suffixes(
    missing_image: int, missing_caption: int, clues: Clues, options: ScanOptions
) -> list[str]:
    lines: list[str] = []
    images = _ending_in(clues, _IMAGE_ENDINGS, (*options.image_suffixes, options.text_suffix))
    texts = _ending_in(clues, _TEXT_ENDINGS, (*options.image_suffixes, options.text_suffix))
    if missing_image and images:
        which = "the images may be" if len(images) == 1 else "name the one that is the image:"
        lines.append(f"{which} {_named(images)}: --image-suffix {images[0]}")
    lost = missing_caption or (missing_image and not clues.suffixes[options.text_suffix])
    if lost and texts and options.captions in ("txt", "lines"):
        lines.append(f"the captions may be {_named(texts)}: --caption-suffix {texts[0]}")
    return lines


def _ending_in(clues: Clues, endings: tuple[str, ...], known: tuple[str, ...]) -> list[str]:
    """Suffixes of a kind that are not looked for, the most frequent first."""
    found = clues.suffixes.most_common()
    return [s for s, _ in found if s.rpartition(".")[2] in endings and s not in known]


def _named(suffixes: list[str]) -> str:
    return ", ".join(f".{suffix}" for suffix in suffixes[:_MOST_SHOWN])


def _other_captions(clues: Clues, options: ScanOptions) -> list[str]:
    lines: list[str] = []
    suffixes = clues.suffixes
    if options.json_field and suffixes["txt"]:
        lines.append("there is a .txt: --captions txt")
    if suffixes["cls"] and not suffixes["txt"]:
        lines.append("there is a .cls: --captions class indexes a labelled set to evaluate on")
    fields = _caption_fields(set(clues.json_texts) | set(clues.json_lists))
    fields = [name for name in fields if name != options.json_field]
    if fields:
        shown = ", ".join(fields[:_MOST_SHOWN])
        lines.append(f"the json holds texts in {shown}: --captions json:{fields[0]}")
    return lines


def _caption_fields(names: Iterable[str]) -> list[str]:
    """Fields, those named like captions first."""

    def rank(name: str) -> tuple[int, str]:
        words = [place for place, word in enumerate(_CAPTION_WORDS) if word in name.lower()]
        return min(words, default=len(_CAPTION_WORDS)), name

    return sorted((name for name in names if name), key=rank)


def _repeated(clues: Clues, options: ScanOptions) -> list[str]:
    if not clues.num_repeated_elsewhere:
        return []
    line = f"{clues.num_repeated_elsewhere} keys are those of another shard of the same source"
    if not options.keys_per_shard:
        line += ": --keys-per-shard keeps them all if every shard counts from the same number"
    return [
        f"{line}; several data sets are told apart if each folder is named by itself, or as "
        "NAME=FOLDER"
    ]


def _unused(clues: Clues, options: ScanOptions, missing_caption: int) -> list[str]:
    if options.captions == "class":
        return ["the captions are class numbers: this index is to evaluate on, not to train on"]
    lines: list[str] = []
    if options.captions == "txt" and 2 * clues.num_texts_of_lines > clues.num_texts:
        lines.append(
            f"{clues.num_texts_of_lines} of {clues.num_texts} texts have several lines, which are "
            "one caption here: --captions lines makes each line a caption"
        )
    lists = [n for n in _caption_fields(clues.json_lists) if _looks_like_captions(n)]
    if options.captions in ("txt", "lines") and lists and not missing_caption:
        lines.append(
            f"the json of the samples lists several captions in {', '.join(lists)}, which are not "
            f"used: --captions json:{lists[0]} takes them all"
        )
    return lines


def _looks_like_captions(name: str) -> bool:
    return any(word in name.lower() for word in _CAPTION_WORDS[:3])
