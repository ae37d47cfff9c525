"""What models are asked: files that a person may copy and change, and how they are filled in."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

REWRITE_FILE = Path(__file__).with_name("rewrite.toml")
"""Default of tools/rewrite_captions.py."""
RECAPTION_FILE = Path(__file__).with_name("recaption.toml")
"""Default of tools/recaption.py."""
_MAX_WORDS = 77
_PLACEHOLDERS = {"alt_text", "description"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RewritePrompt:
    """In-context rewriting, as LaCLIP does it (Fan et al., NeurIPS 2023, section 3)."""

    instruction: str
    """First line."""
    separator: str
    """Stands between a caption and its rewrite."""
    fingerprint: str
    """SHA-256 (hex) of the file."""

    def fill(self, examples: Sequence[tuple[str, str]], caption: str) -> str:
        """The prompt for one caption; it ends where the rewrite is to begin."""
        lines = [f"{one_line(a)} {self.separator} {one_line(b)}" for a, b in examples]
        return "\n\n".join([self.instruction, *lines, f"{shortened(caption)} {self.separator}"])


@dataclass(frozen=True, kw_only=True, slots=True)
class RecaptionPrompts:
    """Description of a picture, then fusion with its alt text, as VeCLIP does it."""

    describe: str
    """For the vision-language model; empty for one that takes only a picture."""
    fuse: str
    """For the language model, with `$alt_text` and `$description`."""
    refusals: tuple[str, ...]
    """How answers begin that refuse; letters' case does not count."""
    fingerprint: str
    """SHA-256 (hex) of the file."""

    def fill(self, alt_text: str, description: str) -> str:
        """The fusion prompt of one sample."""
        return Template(self.fuse).substitute(
            alt_text=shortened(alt_text), description=one_line(description)
        )

    def is_refusal(self, answer: str) -> bool:
        """Whether an answer begins like a refusal."""
        start = _plain(answer).lstrip("\"'*( ")
        return start.startswith(tuple(map(_plain, self.refusals)))


def one_line(text: str) -> str:
    """The text with single spaces for every run of whitespace."""
    return " ".join(text.split())


def shortened(text: str) -> str:
    """On one line, at most 77 words: CLIP reads no more than 77 tokens of a caption."""
    return " ".join(text.split()[:_MAX_WORDS])


def read_rewrite_prompt(path: Path) -> RewritePrompt:
    """Read a file like `rewrite.toml`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML or lacks an entry.
    """
    entries, fingerprint = _read(path, {"instruction": str, "separator": str})
    if not entries["separator"].strip():
        raise ValueError(f"{path}: separator is empty; the default is =>")
    return RewritePrompt(
        instruction=entries["instruction"].strip(),
        separator=entries["separator"].strip(),
        fingerprint=fingerprint,
    )


def read_recaption_prompts(path: Path) -> RecaptionPrompts:
    """Read a file like `recaption.toml`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML, lacks an entry, or `fuse` has other placeholders.
    """
    entries, fingerprint = _read(path, {"describe": str, "fuse": str, "refusals": list})
    template = Template(entries["fuse"])
    if not template.is_valid() or set(template.get_identifiers()) != _PLACEHOLDERS:
        raise ValueError(f"{path}: fuse must hold $alt_text and $description; write $$ for a $")
    refusals = tuple(map(str, entries["refusals"]))
    if not all(text.strip() for text in refusals):
        raise ValueError(f"{path}: an empty entry of refusals would refuse every answer")
    return RecaptionPrompts(
        describe=entries["describe"].strip(),
        fuse=entries["fuse"].strip(),
        refusals=refusals,
        fingerprint=fingerprint,
    )


def _read(path: Path, wanted: dict[str, type]) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no prompt file {path}; copy one from {REWRITE_FILE.parent}"
        )
    data = path.read_bytes()
    try:
        entries = tomllib.loads(data.decode())
    except ValueError as error:
        raise ValueError(f"{path} is no TOML in UTF-8: {error}") from None
    for name, kind in wanted.items():
        if type(entries.get(name)) is not kind:
            what = "a text" if kind is str else "a list of texts"
            raise ValueError(f"{path} lacks the entry {name}: {what}")
    return entries, hashlib.sha256(data).hexdigest()


def _plain(text: str) -> str:
    """Small letters and straight apostrophes, for comparison."""
    return one_line(text).casefold().replace("\u2019", "'")
