"""Blocks of samples worked on together, with a bounded number of further tries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.counter_random import Purpose, keys
from tessera.pipeline.index.captions import CaptionTable
from tessera.pipeline.index.dataset import Dataset
from tessera.tools.captioning.judging import Fault
from tessera.tools.captioning.output import CaptionFile, Row

FINAL = (Fault.REFUSED, Fault.UNREADABLE)
"""Faults that a further try would not heal."""
# Training draws with the plain seed; here it is another one, so the two have nothing in common.
_SEED_OF_TOOLS = 0x63617074696F6E73


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What is known of a sample before a language model is asked."""

    sample_id: int
    """Row of the index."""
    caption: str
    """Its first original text."""
    description: str = ""
    """What a vision-language model says of the picture."""
    fault: Fault | None = None
    """Why there is nothing to ask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one try."""

    text: str = ""
    """The new caption; of no use if there is a fault."""
    fault: Fault | None = None
    """Why it is not used."""


class Captioner(Protocol):
    """Writes captions."""

    def prepare(self, ids: NDArray[np.int64]) -> list[Material]:
        """Collect what each sample's prompt needs; done once."""
        ...

    def attempt(self, materials: Sequence[Material], attempt: int) -> list[Outcome]:
        """Write a caption for each; a pure function of the materials and the try's number."""
        ...


def caption_all(
    dataset: Dataset,
    captioner: Captioner,
    output: CaptionFile,
    retries: int,
    progress: Callable[[int], object] = lambda _count: None,
) -> int:
    """Caption all samples that the output does not have yet.

    Args:
        dataset: the samples, in the order in which they are written.
        captioner: writes the captions.
        output: where they go, a block at a time.
        retries: further tries for captions with a fault, unless it is final.
        progress: told how many samples are done on top.

    Returns:
        How many further tries there were.

    Raises:
        OSError: the output cannot be written.
    """
    num_retried = 0
    while output.num_done < dataset.num_samples:
        start = output.num_done
        ids = dataset.sample_ids(start, start + output.block_size)
        materials = captioner.prepare(ids)
        outcomes = [Outcome(fault=material.fault) for material in materials]
        open_places = [place for place, found in enumerate(materials) if found.fault is None]
        for attempt in range(retries + 1):
            if not open_places:
                break
            num_retried += len(open_places) if attempt else 0
            tried = captioner.attempt([materials[place] for place in open_places], attempt)
            for place, outcome in zip(open_places, tried, strict=True):
                outcomes[place] = outcome
            open_places = [p for p in open_places if outcomes[p].fault not in (None, *FINAL)]
        named = dataset.index.keys(ids)
        output.append([_row(*parts) for parts in zip(named, materials, outcomes, strict=True)])
        progress(len(ids))
    return num_retried


def first_captions(table: CaptionTable, ids: NDArray[np.int64]) -> list[str]:
    """The first text of each sample."""
    rows, offsets = table.rows(ids)
    return table.texts(rows[offsets[:-1]])


def tool_seed(seed: int) -> int:
    """The seed of draws made by tools; training's draws have the plain one."""
    return seed ^ _SEED_OF_TOOLS


def sampling_seed(seed: int, materials: Sequence[Material], attempt: int) -> int:
    """Seed of the tokens drawn for a block: the same when the block is worked on again."""
    key = keys(tool_seed(seed), attempt, materials[0].sample_id, Purpose.CAPTION)
    return int(key[0] >> np.uint64(1))


def _row(key: str, material: Material, outcome: Outcome) -> Row:
    captions = [] if outcome.fault else [outcome.text]
    return Row(key=key, caption=captions, fault=outcome.fault, description=material.description)
