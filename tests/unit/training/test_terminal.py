"""What a run says when it fails."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from tessera.recipes import find_recipe
from tessera.training.command_line import parse, with_options
from tessera.training.config import TrainConfig
from tessera.training.terminal import failure, next_commands


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("could not create a primitive"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
    ],
)
def test_want_of_memory_is_named_with_what_helps(error: Exception) -> None:
    said = failure(error)
    assert said.startswith("memory ran out: ")
    assert str(error) in said
    for option in ("--accumulation", "--checkpoint-blocks", "--batch-size"):
        assert option in said


def test_the_cpu_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert failure(raised.value).startswith("memory ran out: ")


def test_other_errors_keep_their_words() -> None:
    assert failure(RuntimeError("two shapes differ")) == "two shapes differ"


def test_an_error_without_words_has_its_name() -> None:
    assert failure(RuntimeError()) == "RuntimeError"


def build(name: str) -> TrainConfig:
    return find_recipe(name).build()


def test_the_next_command_repeats_the_persons_words_with_one_change() -> None:
    words = ["demo", "--seed", "3", "--run_dir", "my runs/one", "--mask.kind=cluster", "--restart",
             "--data.captions", "caption=1", "a b=2"]  # fmt: skip
    config = parse(words, build, "").config
    commands = next_commands(config, words, Path("my runs/one/checkpoints/step_000000009"))
    again = shlex.split(commands["compare"])
    assert again[:2] == ["python", "train.py"]
    changed = parse(again[2:], build, "")
    assert not changed.restart
    assert changed.config.mask.kind == "random"
    assert changed.config.run_dir == "my runs/one-random"
    assert (changed.config.seed, changed.config.data.captions) == (3, ("caption=1", "a b=2"))
    for tool in ("search", "evaluate", "export"):
        assert shlex.split(commands[tool])[:2] == ["python", f"tools/{tool}.py"]
        assert "my runs/one" in shlex.split(commands[tool])[2]


def test_options_are_replaced_in_every_spelling() -> None:
    words = ["x", "--a-b", "1", "2", "--c=4", "--d"]
    assert with_options(words, {"--a-b": "9"}) == ["x", "--c=4", "--d", "--a-b", "9"]
    assert with_options(["--a_b=1", "--c", "2"], {"--a-b": "9"}) == ["--c", "2", "--a-b", "9"]
