"""Examples of a prompt: where they come from and how they are drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tessera.tools.captioning.examples import ExampleSet, open_examples, without_replacement


def test_every_order_of_different_numbers_is_equally_likely() -> None:
    rows = np.random.default_rng(0).random((24_000, 3))
    counts = Counter(tuple(without_replacement(row, 4)) for row in rows)
    assert len(counts) == 4 * 3 * 2
    expected = len(rows) / 24
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 49.7  # 23 degrees of freedom, p = 0.001


def test_edges_of_the_uniforms_stay_in_range() -> None:
    top = np.nextafter(1.0, 0.0)
    assert without_replacement(np.array([top, top, top]), 3) == [2, 1, 0]
    assert without_replacement(np.array([0.0, 0.0, 0.0]), 3) == [0, 1, 2]


def test_pairs_keep_their_direction_and_groups_give_any_two() -> None:
    uniforms = np.random.default_rng(1).random((400, 2, 3))
    pairs = ExampleSet(name="x", groups=(("a", "A"), ("b", "B")), has_direction=True)
    assert {tuple(pairs.draw(row)) for row in uniforms} == {
        (("a", "A"), ("b", "B")),
        (("b", "B"), ("a", "A")),
    }
    groups = ExampleSet(name="x", groups=(("a", "b", "c"),) * 2, has_direction=False)
    drawn = {pair for row in uniforms for pair in groups.draw(row)}
    assert drawn == {(x, y) for x in "abc" for y in "abc" if x != y}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.tsv", 'input\toutput\na "dog"\tone dog\nx\ty\nu\tv\n'),
        (
            "pairs.jsonl",
            '{"input": "a \\"dog\\"", "output": "one dog"}\n'
            '{"input": "x", "output": "y"}\n{"input": "u", "output": "v"}\n',
        ),
    ],
)
def test_pairs_of_a_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = open_examples(str(tmp_path / name), 3)
    assert found.groups == (('a "dog"', "one dog"), ("x", "y"), ("u", "v"))
    assert found.has_direction
    assert found.name == name


def test_captions_of_an_index(coloured_index: Path) -> None:
    found = open_examples(str(coloured_index), 3)
    assert len(found.groups) == 96
    assert not found.has_direction
    first = "a red picture with the number 0"
    assert found.groups[0] == (first, f"{first}, seen again")


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("input\toutput\na\tb\nc\t\n")
    with pytest.raises(ValueError, match="line 3: needs an input and an output"):
        open_examples(str(path), 1)
    path.write_text("input\toutput\na\tb\n")
    with pytest.raises(ValueError, match="holds 1 pairs"):
        open_examples(str(path), 3)
    path.write_text("from\tto\na\tb\n")
    with pytest.raises(ValueError, match="no column 'input'"):
        open_examples(str(path), 1)
    with pytest.raises(FileNotFoundError):
        open_examples(str(tmp_path / "none.tsv"), 1)
