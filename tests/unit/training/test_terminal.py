"""What a run says when it fails."""

from __future__ import annotations

import pytest
import torch

from training.terminal import failure


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
