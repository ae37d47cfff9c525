"""One line of JSON for every step, one line of text now and then."""

from __future__ import annotations

import json
import math
import resource
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.durable import write_text

_WORTH_NAMING = 0.02
"""A smaller share of the time spent waiting for data needs no culprit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What is known of one step."""

    step: int
    """Optimiser steps done, this one included."""
    samples: int
    """Pairs seen, this step's included, over all ranks."""
    loss: float
    """Contrastive loss, nats."""
    lr: float
    """Learning rate of this step."""
    logit_scale: float
    """Exponentiated logit scale after this step."""
    step_s: float
    """Seconds of the whole step, data wait included."""
    data_wait_s: float
    """Seconds that the step waited for its batch."""
    data_busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage of the loader worked during this step, on batches to come."""
    data_bottleneck: str = ""
    """The stage that held the loader up during this step; "" if it did nothing."""
    replaced: int = 0
    """Samples that the loader found bad and replaced during this step."""


class NonFiniteLossError(Exception):
    """The loss is not a number any more; going on would only destroy the weights."""


class StepLog:
    """Gathers steps without reading the device, and writes them when asked.

    Losses stay tensors until `flush`, so no step waits for a copy from the device.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        """Open the file; what was logged beyond the resumed step is dropped and done again.

        Args:
            path: metrics.jsonl.
            resumed_step: the last step that counts, 0 for a fresh run.
        """
        self._path = path
        self._pending: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
        kept = [r for r in read_records(path) if r.step <= resumed_step]
        write_text(path, "".join(map(_line, kept)))

    def add(self, loss: Tensor, log_scale: Tensor, **known: Any) -> None:
        """Remember a step.

        Args:
            loss: scalar on any device.
            log_scale: scalar parameter, the logarithm of the logit scale; copied.
            known: the other fields of `StepRecord`.
        """
        self._pending.append((loss.detach(), log_scale.detach().clone(), known))

    def flush(self) -> list[StepRecord]:
        """Write the remembered steps and return them.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; names the step.
            OSError: the file cannot be written.
        """
        if not self._pending:
            return []
        losses = torch.stack([loss for loss, _, _ in self._pending]).float().tolist()
        scales = torch.stack([scale for _, scale, _ in self._pending]).float().exp().tolist()
        records = [
            StepRecord(loss=loss, logit_scale=scale, **known)
            for loss, scale, (_, _, known) in zip(losses, scales, self._pending, strict=True)
        ]
        self._pending.clear()
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(map(_line, records))
        except OSError as error:
            raise OSError(
                f"{self._path} cannot be written ({error.strerror}); make room, then run the same "
                "command again: it goes on from the last checkpoint"
            ) from error
        for record in records:
            if not math.isfinite(record.loss):
                raise NonFiniteLossError(
                    f"the loss is {record.loss} at step {record.step}; the last checkpoint is from "
                    "before it. Try a lower learning rate, a longer warm-up, or float32"
                )
        return records


def read_records(path: Path) -> list[StepRecord]:
    """Read metrics.jsonl; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(StepRecord(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return records


def describe(records: list[StepRecord], num_steps: int, device: torch.device) -> str:
    """The log line of the steps since the last one.

    Args:
        records: at least one step.
        num_steps: of the whole run.
        device: its memory is reported; the process's own on a CPU.
    """
    last = records[-1]
    seconds = sum(r.step_s for r in records)
    rate = len(records) * last.samples / last.step / seconds
    wait = sum(r.data_wait_s for r in records) / seconds
    loss = sum(r.loss for r in records) / len(records)
    left = (num_steps - last.step) * last.samples / last.step / rate
    parts = [
        f"step {last.step}/{num_steps}",
        f"samples {_short(last.samples)}",
        f"loss {loss:.3f}",
        f"lr {last.lr:.1e}",
        f"scale {last.logit_scale:.1f}",
        f"{rate:,.0f} pairs/s",
        f"data wait {wait:.1%}{_slowest(records) if wait > _WORTH_NAMING else ''}",
        f"mem {memory_bytes(device) / 2**30:.1f} GiB",
        f"eta {_duration(left)}",
    ]
    return " | ".join(parts)


def memory_bytes(device: torch.device) -> int:
    """Highest memory use so far: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _slowest(records: list[StepRecord]) -> str:
    named = Counter(record.data_bottleneck for record in records if record.data_bottleneck)
    return f" for {named.most_common(1)[0][0]}" if named else ""


def _line(record: StepRecord) -> str:
    return json.dumps(asdict(record)) + "\n"


def _short(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f}h"
    return f"{seconds / 60:.1f}min" if seconds >= 60 else f"{seconds:.0f}s"
