"""Batches on their way to the model's device, beside the work that the device is doing.

On CUDA everything that makes a batch is queued on a stream of its own: what decodes and masks on
the device, and the copies from pinned memory. An event behind them tells the consumer's stream when
the batch is there; the host waits for nothing. On a CPU there is nothing to copy or to wait for.

Who keeps memory from being used again too early:
- A pinned buffer: torch's pinned allocator notes each copy out of it, and gives it to a later batch
  only when that copy has ended. Buffers are reused, so after some batches none is made any more.
- A batch on the device: it was allocated on the copier's stream, where its memory could be given to
  the next batch while the model still reads it; `record_stream` keeps it until the model has done.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from tessera.pipeline.batch import DenseBatch, PackedBatch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Queue a copy from host memory on the current stream; the host does not wait for it.

    Args:
        tensor: not to be changed by the caller afterwards.
        device: where it is wanted; on a CPU the tensor is there already.
    """
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """A batch whose copies are queued, perhaps not done."""

    batch: PackedBatch | DenseBatch
    """On the model's device; not to be used before `ready`."""
    ready: torch.cuda.Event | None
    """Behind the last of its copies; None if it is there already."""


class DeviceCopier:
    """Sends batches from the thread that makes them to the one that uses them."""

    def __init__(self, device: torch.device | str) -> None:
        """Open a stream, where the device has streams.

        Args:
            device: the model's.

        Raises:
            ValueError: it is a CUDA device, and torch sees none.
        """
        self.device = torch.device(device)
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise ValueError(f"device {device}: torch sees no GPU here; take cpu")
            self._stream = torch.cuda.Stream(self.device)
            self.device = self._stream.device

    def queue(self) -> AbstractContextManager[object]:
        """In this block, what is made on the device is queued on the copier's stream.

        It also makes the device the current one, which a new thread has to be told.
        """
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def send(self, batch: PackedBatch | DenseBatch) -> Sent:
        """Queue the copies of a batch; to be called inside `queue`."""
        if self._stream is None:
            return Sent(batch=batch.to(self.device), ready=None)
        there = batch.pin_memory().to(self.device)
        ready = torch.cuda.Event()
        if isinstance(there, PackedBatch) and there.host_image_offsets is None:  # made there
            # torch takes pinned memory for a copy to the host that shall not be waited for.
            offsets = there.image_offsets.to("cpu", non_blocking=True)
            there = replace(there, host_image_offsets=offsets, host_ready=ready)
        ready.record(self._stream)
        return Sent(batch=there, ready=ready)

    def receive(self, sent: Sent) -> PackedBatch | DenseBatch:
        """The batch, for work that is queued on the caller's current stream from now on."""
        if sent.ready is not None:
            consumer = torch.cuda.current_stream(self.device)
            consumer.wait_event(sent.ready)
            sent.batch.record_stream(consumer)
        return sent.batch
