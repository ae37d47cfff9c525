"""What the README and the docs tell a person to type exists and parses."""

import re
import shlex
from pathlib import Path

import pytest

from tessera.recipes import RECIPES, find_recipe
from tessera.training.command_line import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """Every command line in the page's shell blocks, split at && and joined at backslashes."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            parts = re.split(r"&&|;", line.split("#")[0])
            found += [words for part in parts if (words := shlex.split(part))]
    return found


def python_commands() -> list[tuple[str, list[str]]]:
    return [
        (page.name, words[1:])
        for page in PAGES
        for words in commands(page)
        if words[0] == "python" and words[1].endswith(".py")
    ]


def test_there_are_commands_to_check() -> None:
    assert len(python_commands()) >= 6
    assert any(words[0] == "tests/run" for words in commands(ROOT / "README.md"))
    assert (ROOT / "tests/run").stat().st_mode & 0o100
    assert "tests/run" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "words"), python_commands())
def test_command_exists_and_parses(page: str, words: list[str]) -> None:
    assert (ROOT / words[0]).is_file(), f"{page}: {words[0]}"
    if words[0] == "train.py":
        config = parse(words[1:], lambda name: find_recipe(name).build(), "").config
        assert config.num_steps > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_file_tree_is_the_real_one() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## Where things are")[1].split("```")[1]
    named = {line.split("/")[0] for line in tree.splitlines() if "/" in line}
    real = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and (any(path.rglob("*.py")) or path.name in ("docs", "native"))
    }
    assert named == {
        name for name in real if not name.startswith(".") and name not in ("data", "runs", "build")
    }


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipe_docstrings_carry_commands_that_parse(name: str) -> None:
    doc = " ".join((find_recipe(name).build.__doc__ or "").split())
    lines = re.findall(r"`(?:python|torchrun [^`]*?) train\.py ?([^`]*)`", doc)
    assert lines, f"{name}: no command"
    for line in lines:
        parse(shlex.split(line), lambda recipe: find_recipe(recipe).build(), "")
