"""One line of JSON for every step, one line of text now and then."""

from __future__ import annotations

import json
import math
import resource
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.pipeline.durable import write_text
from tessera.training.stages import Stage

DEVICE = "waiting for the device"
"""What the host does when it reads losses, for a timeline."""
_WORTH_COUNTING = 0.001
"""A smaller share of equal captions is not worth a place in the log line."""
_WORTH_NAMING = 0.02
"""A smaller share of the time spent waiting for data needs no culprit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What is known of one step."""

    step: int
    """Optimiser steps of the run done, this one included."""
    samples: int
    """Pairs seen, this step's included, over all ranks."""
    loss: float
    """Contrastive loss, nats."""
    lr: float
    """Learning rate of this step."""
    logit_scale: float
    """Exponentiated logit scale after this step."""
    step_s: float
    """Seconds of the whole step: data wait, logging and checkpoints since the last one included."""
    data_wait_s: float
    """Seconds that the step waited for its batch."""
    data_busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage of the loader worked during this step, on batches to come."""
    data_bottleneck: str = ""
    """The stage that held the loader up during this step; "" if it did nothing."""
    data_bytes: int = 0
    """Bytes of the batches that were handed to the model's device during this step."""
    replaced: int = 0
    """Samples that the loader found bad and replaced during this step."""
    grad_norm: float = math.nan
    """Length of the gradient of all parameters before it was clipped."""
    same_captions: float = 0.0
    """Share of the global batch's captions that another pair of the batch has as well, 0 to 1."""
    stage: int = 1
    """Stage of the run that the step belongs to, counted from 1."""
    parts_s: dict[str, float] = field(default_factory=dict)
    """Seconds of `step_s` by activity; on a GPU, of launching the work."""


class NonFiniteLossError(Exception):
    """The loss is not a number any more; going on would only destroy the weights."""

    def __init__(self, message: str, step: int) -> None:
        """Args are the message and the first step of the run with such a loss or gradient."""
        super().__init__(message)
        self.step = step


class StepLog:
    """Gathers steps without reading the device, and writes them when asked.

    Losses stay tensors until `flush`, so no step waits for a copy from the device.
    """

    def __init__(self, path: Path | None, *, resumed_step: int) -> None:
        """Open the file; what was logged beyond the resumed step is dropped and done again.

        Args:
            path: metrics.jsonl; None on ranks that only look at their losses.
            resumed_step: the last step that counts, 0 for a fresh run.
        """
        self._path = path
        self._pending: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = []
        if path is not None:
            kept = [r for r in read_records(path) if r.step <= resumed_step]
            write_text(path, "".join(map(_line, kept)))

    def add(
        self,
        loss: Tensor,
        log_scale: Tensor,
        grad_norm: Tensor,
        same_captions: Tensor | None = None,
        **known: Any,
    ) -> None:
        """Remember a step.

        Args:
            loss: scalar on any device, as the next three.
            log_scale: the logarithm of the logit scale, a parameter; copied.
            grad_norm: length of the gradient.
            same_captions: share of the captions that another pair of the batch has too; 0 if None.
            known: the other fields of `StepRecord`.
        """
        same = torch.zeros_like(loss) if same_captions is None else same_captions
        scalars = (loss.detach(), log_scale.detach().clone(), grad_norm.detach(), same)
        self._pending.append((scalars, known))

    def flush(self) -> list[StepRecord]:
        """Write the remembered steps and return them.

        The host waits here for the device to come as far; the steps share that time evenly.

        Raises:
            NonFiniteLossError: a loss or a gradient is NaN or infinite; names the step.
            OSError: the file cannot be written.
        """
        if not self._pending:
            return []
        start = time.perf_counter()
        columns = zip(*(scalars for scalars, _ in self._pending), strict=True)
        values = torch.stack([torch.stack(column).float() for column in columns]).tolist()
        share = (time.perf_counter() - start) / len(self._pending)
        records = [
            StepRecord(
                loss=loss,
                logit_scale=math.exp(scale),
                grad_norm=norm,
                same_captions=same,
                **_plus(share, known),
            )
            for loss, scale, norm, same, (_, known) in zip(*values, self._pending, strict=True)
        ]
        self._pending.clear()
        if self._path is not None:
            _append(self._path, records)
        for record in records:
            _require_finite(record)
        return records


def _plus(device_s: float, known: dict[str, Any]) -> dict[str, Any]:
    """A step's fields with its share of the wait for the device."""
    parts = known.get("parts_s", {}) | {DEVICE: device_s}
    return known | {"step_s": known["step_s"] + device_s, "parts_s": parts}


def _require_finite(record: StepRecord) -> None:
    for what, value in (("loss", record.loss), ("length of the gradient", record.grad_norm)):
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the {what} is {value} at step {record.step}; the last checkpoint is from before "
                "it: try a lower learning rate, a longer warm-up, --optim.max-grad-norm or float32",
                record.step,
            )


def _append(path: Path, records: list[StepRecord]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, records))
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}); make room, then run the same "
            "command again: it goes on from the last checkpoint"
        ) from error


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


def describe(records: list[StepRecord], stage: Stage, device: torch.device) -> str:
    """The log line of the steps since the last one.

    Args:
        records: at least one step, all of the stage.
        stage: steps and the time left are its own; samples are the run's.
        device: its memory is reported; the process's own on a CPU.
    """
    last, config = records[-1], stage.config
    seconds = sum(r.step_s for r in records)
    rate = len(records) * config.batch_size / seconds
    wait = sum(r.data_wait_s for r in records) / seconds
    loss = sum(r.loss for r in records) / len(records)
    same = sum(r.same_captions for r in records) / len(records)
    step = last.step - stage.first_step
    left = (config.num_steps - step) * config.batch_size / rate
    parts = [
        *([stage.name] if stage.name else []),
        f"step {step}/{config.num_steps}",
        f"samples {_short(last.samples)}",
        f"loss {loss:.3f}",
        f"lr {last.lr:.1e}",
        f"scale {last.logit_scale:.1f}",
        f"grad {last.grad_norm:.2g}",
        *([f"equal captions {same:.1%}"] if same >= _WORTH_COUNTING else []),
        f"{rate:,.0f} pairs/s",
        f"data wait {wait:.1%}{_slowest(records) if wait > _WORTH_NAMING else ''}",
        f"mem {memory_bytes(device) / 2**30:.1f} GiB",
        f"eta {duration(left)}",
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


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds >= 72 * 3600:
        return f"{seconds / 86400:,.1f} days"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f}h"
    return f"{seconds / 60:.1f}min" if seconds >= 60 else f"{seconds:.0f}s"
