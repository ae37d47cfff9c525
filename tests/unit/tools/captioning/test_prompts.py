"""Prompt files and how they are filled in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.tools.captioning.prompts import (
    RECAPTION_FILE,
    REWRITE_FILE,
    read_recaption_prompts,
    read_rewrite_prompt,
)


def test_a_rewriting_prompt_ends_where_the_rewrite_begins(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('instruction = "Say it again:\\n"\nseparator = " -> "\n')
    prompt = read_rewrite_prompt(path)
    filled = prompt.fill([("a dog", "one\ndog"), ("x", "y")], " my  caption\n")
    assert filled == "Say it again:\n\na dog -> one dog\n\nx -> y\n\nmy caption ->"
    assert prompt.fingerprint != read_rewrite_prompt(REWRITE_FILE).fingerprint


def test_a_caption_in_a_prompt_has_77_words_at_most() -> None:
    prompt = read_rewrite_prompt(REWRITE_FILE)
    last = prompt.fill([], " ".join(f"w{n}" for n in range(100))).rpartition("\n")[2]
    assert last.split() == [*(f"w{n}" for n in range(77)), "=>"]


def test_the_fusion_prompt_takes_texts_as_they_are() -> None:
    prompts = read_recaption_prompts(RECAPTION_FILE)
    filled = prompts.fill("$description costs $5 {x}", "a\nsign")
    assert "Alt text: $description costs $5 {x}\nDescription: a sign\nCaption:" in filled


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("NO CAPTION", True),
        ("no caption.", True),
        ('"No caption"', True),
        ("I\u2019m sorry, but that is not possible", True),
        ("As an AI model I do not", True),
        ("a sign that says no caption", False),
        ("", False),
    ],
)
def test_refusals(answer: str, refused: bool) -> None:
    assert read_recaption_prompts(RECAPTION_FILE).is_refusal(answer) == refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("describe = 1", "lacks the entry describe: a text"),
        ('describe = ""\nfuse = "$alt_text"\nrefusals = []', "must hold .alt_text and .descr"),
        (
            'describe = ""\nfuse = "$alt_text $description costs $"\nrefusals = []',
            "for a \\$",
        ),
        ('describe = ""\nfuse = "$alt_text $description"\nrefusals = [" "]', "refuse every"),
        ("describe = ", "is no TOML"),
    ],
)
def test_wrong_prompt_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recaption_prompts(path)


def test_a_missing_prompt_file_says_where_to_copy_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="copy one from"):
        read_rewrite_prompt(tmp_path / "none.toml")
