"""An imagined CUDA device: shapes and devices alone, and an error where the host would wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class HostWaitError(AssertionError):
    """The host would wait for the device."""


class _NoWaiting(TorchDispatchMode):
    """Raises where a copy between host and device blocks; reading a value raises by itself.

    torch takes pinned memory for a copy to the host that shall not block.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            source, wanted = args[0], kwargs.get("device")
            if _crosses(source, wanted) and not kwargs.get("non_blocking", False):
                raise HostWaitError(f"a blocking copy of {list(source.shape)} to {wanted}")
        if func is torch.ops.aten.copy_.default:
            target, source = args[0], args[1]
            ahead = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            to_cuda = target.device.type == "cuda"
            if _crosses(source, target.device) and not (ahead and to_cuda):
                raise HostWaitError(f"a blocking copy of {list(source.shape)} to {target.device}")
        return func(*args, **kwargs)


def _crosses(source: Tensor, device: torch.device | None) -> bool:
    return device is not None and torch.device(device).type != source.device.type


@contextmanager
def imagined_cuda(mode: FakeTensorMode | None = None) -> Iterator[None]:
    """In this block, tensors have no values, a CUDA device is there, and waiting for it raises.

    A copy that may overlap counts as one that does: whether its memory is pinned cannot be seen.

    Args:
        mode: in which tensors of the block were made beforehand; a new one without.

    Raises:
        HostWaitError: a copy between host and device blocks.
    """
    with mode or FakeTensorMode(), _NoWaiting():
        yield
