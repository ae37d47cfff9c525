"""Blocks, further tries and the output file, with a language model that follows a script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tessera.pipeline.index.dataset import Dataset, open_dataset
from tessera.tools.captioning.engine import Completion
from tessera.tools.captioning.examples import ExampleSet
from tessera.tools.captioning.output import CaptionFile
from tessera.tools.captioning.prompts import REWRITE_FILE, read_rewrite_prompt
from tessera.tools.captioning.rewriter import Rewriter
from tessera.tools.captioning.rounds import caption_all

ROOT = Path(__file__).resolve().parents[4]
EXAMPLES = ExampleSet(
    name="own", groups=tuple((f"in {n}", f"out {n}") for n in range(9)), has_direction=True
)
IDENTITY = {"model": {"name": "scripted"}, "settings": {"seed": 0, "top_p": 0.95}}


@dataclass
class Scripted:
    """Answers by a function of the caption asked for and the number of times it was asked."""

    script: Callable[[str, int], str]
    asked: dict[str, int] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    calls: int = 0
    fails_at_call: int = 0

    def continue_lines(self, prompts: Sequence[str], seed: int) -> list[Completion]:
        self.calls += 1
        if self.calls == self.fails_at_call:
            raise KeyboardInterrupt
        self.prompts += prompts
        return [self._one(prompt.rpartition("\n")[2], seed) for prompt in prompts]

    def answer(self, questions: Sequence[str], seed: int) -> list[Completion]:
        return self.continue_lines(questions, seed)

    def _one(self, caption: str, seed: int) -> Completion:
        number = self.asked[caption] = self.asked.get(caption, -1) + 1
        text = self.script(caption.removesuffix(" =>"), number)
        return Completion(text=text.replace("SEED", str(seed)), finished=text != "no end")


@pytest.fixture
def dataset(coloured_index: Path) -> Dataset:
    return open_dataset(coloured_index)


def rewrite(
    dataset: Dataset, out: Path, model: Scripted, *, retries: int = 2, block: int = 40, **more: Any
) -> int:
    rewriter = Rewriter(
        dataset.index, model, read_rewrite_prompt(REWRITE_FILE), EXAMPLES, 3, seed=0
    )
    with CaptionFile(out, dataset, {**IDENTITY, **more}, {"torch": "x"}, block) as output:
        return caption_all(dataset, rewriter, output, retries)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def again(caption: str, number: int) -> str:
    """A rewrite that names what is drawn: with another seed it is another one."""
    return f"again {caption} SEED"


def test_every_sample_has_a_line_in_the_order_of_the_index(
    dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "rewrites.jsonl"
    assert rewrite(dataset, out, Scripted(lambda caption, _: f"{caption}, once more")) == 0
    rows = rows_of(out)
    assert [row["key"] for row in rows] == dataset.index.keys(range(96))
    assert rows[7] == {
        "key": "000000007",
        "caption": ["a green picture with the number 7, once more"],
    }
    record = json.loads(out.with_suffix(".json").read_text())
    assert record == {**IDENTITY, "environment": {"torch": "x"}}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        ("dog", "one_word"),
        ("no end", "too_long"),
        ("a dog => a cat", "runs_on"),
        ("a Red picture with the number 0", "copy"),
    ],
)
def test_a_fault_is_tried_again_so_often_and_then_counted(
    dataset: Dataset, tmp_path: Path, text: str, fault: str
) -> None:
    def script(caption: str, number: int) -> str:
        if caption.endswith(" 0"):
            return text
        return text if caption.endswith(" 1") and number < 2 else "a good rewrite"

    # The first sample's words are a copy of its own caption only.
    if fault == "copy":
        model = Scripted(lambda c, n: c.upper() if script(c, n) == text else "a good rewrite")
    else:
        model = Scripted(script)
    out = tmp_path / "rewrites.jsonl"
    assert rewrite(dataset, out, model) == 4
    rows = rows_of(out)
    assert rows[0] == {"key": "000000000", "caption": [], "fault": fault}
    assert rows[1]["caption"] == ["a good rewrite"]
    assert max(model.asked.values()) == 2
    assert sum(model.asked.values()) == 4


def test_each_try_shows_other_examples_and_they_hang_on_the_sample_only(
    dataset: Dataset, tmp_path: Path
) -> None:
    one, other = (Scripted(lambda *_: "") for _ in range(2))
    rewrite(dataset, tmp_path / "one.jsonl", one, block=96)
    rewrite(dataset, tmp_path / "other.jsonl", other, block=7)
    assert sorted(one.prompts) == sorted(other.prompts)
    assert len(set(one.prompts)) > 3 * 96 - 10  # of 504 ordered draws three hardly ever agree


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_run_that_was_stopped_gives_what_an_unbroken_one_gives(
    dataset: Dataset, tmp_path: Path, fails_at: int
) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    rewrite(dataset, whole, Scripted(again))
    with pytest.raises(KeyboardInterrupt):
        rewrite(dataset, broken, Scripted(again, fails_at_call=fails_at))
    assert len(rows_of(broken)) == 40 * (fails_at - 1)
    model = Scripted(again)
    rewrite(dataset, broken, model)
    assert broken.read_bytes() == whole.read_bytes()
    assert model.calls == 4 - fails_at


def test_a_torn_end_is_cut_wherever_it_lies(dataset: Dataset, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    rewrite(dataset, whole, Scripted(again))
    rewrite(dataset, torn, Scripted(again))
    data = whole.read_bytes()
    for length in (0, 1, 500, len(data) // 2, len(data) - 1):
        torn.write_bytes(data[:length])
        rewrite(dataset, torn, Scripted(again))
        assert torn.read_bytes() == data
    finished = Scripted(again)
    rewrite(dataset, torn, finished)
    assert finished.calls == 0


def test_faults_are_counted_over_all_sittings(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "rewrites.jsonl"
    with pytest.raises(KeyboardInterrupt):
        rewrite(dataset, out, Scripted(lambda *_: "", fails_at_call=2), retries=0)
    with CaptionFile(out, dataset, IDENTITY, {}, 40) as output:
        assert output.counts == {"empty": 40}


def test_another_run_s_file_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "rewrites.jsonl"
    rewrite(dataset, out, Scripted(again))
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"made with another settings\.seed:"):
        rewrite(dataset, out, Scripted(again), settings={"seed": 1, "top_p": 0.95})
    out.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="nobody knows what made it"):
        rewrite(dataset, out, Scripted(again))
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match="name must end in"):
        rewrite(dataset, tmp_path / "rewrites.txt", Scripted(again))


@pytest.mark.parametrize("line", [b'{"key": "zzz"}\n', b"[]\n", b"\xff\n", b"{\n"])
def test_a_line_that_does_not_belong_there_is_named(
    dataset: Dataset, tmp_path: Path, line: bytes
) -> None:
    out = tmp_path / "rewrites.jsonl"
    rewrite(dataset, out, Scripted(again))
    lines = out.read_bytes().splitlines(keepends=True)
    lines[3] = line
    out.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="line 4 does not belong there"):
        rewrite(dataset, out, Scripted(again))
    out.write_bytes(b"".join([*lines[:3], b'{"key": "000000003"}\n', *lines[4:], lines[4]]))
    with pytest.raises(ValueError, match="line 97 does not belong there"):
        rewrite(dataset, out, Scripted(again))


def test_one_process_at_a_time(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "rewrites.jsonl"
    holder = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); "
    with subprocess.Popen(
        [sys.executable, "-c", holder + "print(1, flush=True); sys.stdin.read()", str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(ValueError, match="written by another process"):
            rewrite(dataset, out, Scripted(again))
        other.communicate(b"")
    rewrite(dataset, out, Scripted(again))
