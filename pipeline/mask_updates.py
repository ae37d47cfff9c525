"""New weights for a mask, on their way from the training loop to the thread that makes batches.

That thread waits before each step that is due for new weights until it has them. So no batch is
made ahead of an update, none is made twice, and what was read ahead stays. The training loop waits
for nothing: the weights are copied behind the work that it has queued on the device, and whoever
makes batches waits for the copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Condition

import torch
from torch import Tensor

from tessera.pipeline.device_copy import upload


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskWeights:
    """What a mask by embeddings is told of the model."""

    weight: Tensor
    """[width, D] float32, the projection of normalised patches, where masks are made."""
    positions: Tensor
    """[N, width] float32, the positional embedding, on the same device."""
    step: int
    """Steps trained when they were taken."""
    ready: torch.cuda.Event | None
    """Behind the copy; None if they are there."""

    @staticmethod
    def queue(
        weight: Tensor, positions: Tensor, step: int, device: torch.device | str
    ) -> MaskWeights:
        """Copy weights to where masks are made; the host does not wait.

        Args:
            weight: [width, D] as above, on any device and in any floating-point type.
            positions: [N, width].
            step: steps trained.
            device: where the loader packs.
        """
        device = torch.device(device)
        copies = [_queue_copy(each, device) for each in (weight, positions)]
        ready, on_gpu = None, next((d for d in (weight.device, device) if d.type == "cuda"), None)
        if on_gpu is not None:
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(on_gpu))
        return MaskWeights(weight=copies[0], positions=copies[1], step=step, ready=ready)

    def receive(self) -> None:
        """Make them safe to read on the current stream, and on the host if they lie there."""
        if self.ready is None:
            return
        if not self.weight.is_cuda:
            self.ready.synchronize()
            return
        stream = torch.cuda.current_stream(self.weight.device)
        stream.wait_event(self.ready)
        for tensor in (self.weight, self.positions):
            tensor.record_stream(stream)


class MaskUpdates:
    """Hands weights from one thread to the other, and makes the other wait for them."""

    def __init__(self, every: int) -> None:
        """Begin without weights.

        Args:
            every: steps divisible by it are due for new weights; 0 waits for none.
        """
        self._every = every
        self._newest: MaskWeights | None = None
        self._given_step = -1
        self._stopped = False
        self._changed = Condition()

    def is_missing(self, step: int) -> bool:
        """Whether the batch of `step` cannot be made yet."""
        return self._given_step < self._due(step)

    def is_awaited(self, step: int) -> bool:
        """Whether no batch from `step` on can have been made yet, as it is due itself."""
        return self._due(step) == step and self.is_missing(step)

    def give(self, weights: MaskWeights) -> None:
        """Let batches up to the next due step be made with these weights."""
        with self._changed:
            self._newest, self._given_step = weights, weights.step
            self._changed.notify_all()

    def take(self) -> MaskWeights | None:
        """The newest weights, once; None if they were taken before."""
        with self._changed:
            newest, self._newest = self._newest, None
            return newest

    def wait(self, step: int) -> bool:
        """Return once the batch of `step` can be made; False if it shall not be, after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self.is_missing(step))
            return not self._stopped

    def stop(self) -> None:
        """End the wait of the other thread, and any later one until `restart`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def restart(self) -> None:
        """Wait again; the other thread has ended."""
        self._stopped = False

    def _due(self, step: int) -> int:
        """The last step up to this one that is due for new weights; -1 if none ever is."""
        return step - step % self._every if self._every else -1


def _queue_copy(tensor: Tensor, device: torch.device) -> Tensor:
    values = tensor.detach().float()
    if values.device.type == "cpu":
        return upload(values.clone(), device)
    # To the host it lies in pinned memory, which torch takes for a copy that is not waited for.
    return values.to(device, non_blocking=True, copy=True)
