"""Which samples every step was trained on, by their rows in the index: a run's proof of its order.

Legend: S steps since the last writing, b pairs of a rank.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from tessera.pipeline.durable import write_text
from tessera.training.distributed import Ranks


class SampleIdLog:
    """One JSON line a step, `{"step": 7, "ids": [...]}`, the ranks' shares one after the other."""

    def __init__(self, path: Path, ranks: Ranks, *, resumed_step: int) -> None:
        """Drop what was logged beyond the resumed step: it is done again.

        Args:
            path: sample_ids.jsonl; written by rank 0 alone.
            ranks: of the run; all of them log.
            resumed_step: the last step that counts, 0 for a fresh run.
        """
        self._path = path
        self._ranks = ranks
        self._pending: list[tuple[int, Tensor]] = []
        if ranks.is_main:
            kept = [line for line in _lines(path) if json.loads(line)["step"] <= resumed_step]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def add(self, step: int, ids: Tensor) -> None:
        """Remember a step without reading its device.

        Args:
            step: steps done, this one included.
            ids: [b] sample ids of this rank.
        """
        self._pending.append((step, ids))

    def flush(self) -> None:
        """Write the remembered steps; all ranks must call it behind the same step.

        Raises:
            OSError: the file cannot be written.
        """
        if not self._pending:
            return
        steps = [step for step, _ in self._pending]
        parts = self._ranks.gather(torch.stack([ids for _, ids in self._pending]).cpu())
        self._pending.clear()
        if parts:
            rows = torch.cat(parts, dim=1).tolist()
            with self._path.open("a", encoding="utf-8") as file:
                for step, ids in zip(steps, rows, strict=True):
                    file.write(json.dumps({"step": step, "ids": ids}) + "\n")


def read_sample_ids(path: Path) -> dict[int, list[int]]:
    """The samples of each step, by the number of steps done with it."""
    records = [json.loads(line) for line in _lines(path)]
    return {record["step"]: record["ids"] for record in records}


def _lines(path: Path) -> list[str]:
    """Whole lines; a last one cut short by a crash is left out."""
    if not path.exists():
        return []
    return [line[:-1] for line in path.read_text("utf-8").splitlines(True) if line.endswith("\n")]
