"""The processes of a run: who they are, how they agree, and what is said when one is lost.

torchrun starts them and ends them; everything else here is torch.distributed. Tensors on a GPU
travel by NCCL, those in host memory by gloo. A second gloo group, `control`, carries what only the
hosts talk about: results of rank 0, votes, checkpoints on their way to the other ranks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

_PATIENCE = timedelta(days=1)
"""So long the others wait while rank 0 prepares data or evaluates."""
_BEAT_S = 1.0
"""A rank says at most this often, in seconds, how far it is."""
_HEARING_S = 2.0
"""So long, in seconds, a rank that cannot go on waits for the others to say the same."""


class RankError(Exception):
    """A rank cannot go on because of another one."""


@dataclass(kw_only=True, slots=True)
class Ranks:
    """This process among those of the run; alone, every method is a plain local call."""

    rank: int = 0
    """Number of this process, 0 .. world_size - 1."""
    world_size: int = 1
    """Processes of the run."""
    local_rank: int = 0
    """Number of this process on its machine: the GPU it takes."""
    timeout_s: float = 600.0
    """Seconds that a rank waits for the others within a step."""
    control: dist.ProcessGroup | None = None
    """Host-only group; None for a process alone."""
    _store: Store | None = None
    _beaten_at: float = 0.0
    _vote: tuple[Tensor, dist.Work] | None = field(default=None)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and evaluates."""
        return self.rank == 0

    def device(self, wanted: str) -> torch.device:
        """The device of this rank.

        Args:
            wanted: auto, cpu or cuda.

        Raises:
            ValueError: there is no GPU, or fewer than processes on this machine.
        """
        if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no GPU here; use --device cpu or auto")
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"rank {self.rank} is process {self.local_rank} of this machine, which has "
                f"{torch.cuda.device_count()} GPUs: give torchrun --nproc-per-node that number"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def on_main(self, work: Callable[[], T]) -> T:
        """Let rank 0 do something, and give its result to every rank.

        Args:
            work: called on rank 0 only; its result can be pickled and is small.

        Raises:
            Exception: what `work` raised, on rank 0; `RankError` on the others.
        """
        if self.control is None:
            return work()
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = work()
            except Exception as error:
                answer[1] = str(error)
                dist.broadcast_object_list(answer, group_src=0, group=self.control)
                raise
        dist.broadcast_object_list(answer, group_src=0, group=self.control)
        if answer[1] is not None:
            raise RankError(f"rank {self.rank} ends because rank 0 failed: {answer[1]}")
        return answer[0]

    def broadcast(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give rank 0's tensors, in host memory, to every rank.

        Args:
            tensors: those of rank 0; not looked at on the others.
        """
        if self.control is None:
            return tensors
        shapes = self.on_main(lambda: {n: (t.shape, t.dtype) for n, t in tensors.items()})
        found = {}
        for name, (shape, dtype) in shapes.items():
            tensor = tensors[name] if self.is_main else torch.empty(shape, dtype=dtype)
            # gloo knows few types; a byte is a byte.
            dist.broadcast(tensor.reshape(-1).view(torch.uint8), group_src=0, group=self.control)
            found[name] = tensor
        return found

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in their order, on rank 0; an empty list on the others."""
        if self.control is None:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.gather_object(value, found if self.is_main else None, group_dst=0, group=self.control)
        return found if self.is_main else []

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all ranks, on its own device, without reading it back."""
        if self.control is None:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def vote(self, wish: bool, step: int) -> bool:
        """Ask all ranks, once a step, whether one of them wishes to stop.

        The answer is that of the step before, so nobody waits for the slowest rank's host: with
        several ranks a wish takes effect one step later, on all of them alike. Because every rank
        takes part in every step, a rank that hangs is noticed here after `timeout_s`.

        Args:
            wish: whether this rank wishes it.
            step: steps done.
        """
        if self.control is None:
            return wish
        self._beat(step)
        decided = self._last_vote()
        flag = torch.tensor([int(wish)])
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control, async_op=True)
        assert work is not None
        self._vote = (flag, work)
        return decided

    def end_votes(self, wish: bool = False) -> bool:
        """Take the last vote out of the way, behind the last step.

        Args:
            wish: whether this rank wishes to stop by now; asked of a process alone.

        Returns:
            The answer that the next step would have got, on all ranks alike.
        """
        return wish if self.control is None else self._last_vote()

    @contextmanager
    def explained(self, step: Callable[[], int]) -> Iterator[None]:
        """Name rank, step and the ranks that are missing when a collective of the block fails.

        Args:
            step: tells how many steps are done.

        Raises:
            RankError: in place of torch's own error, with several ranks only.
        """
        try:
            yield
        except RuntimeError as error:
            if self.control is None:
                raise
            reason = str(error).splitlines()[0]
            raise RankError(
                f"rank {self.rank} of {self.world_size} cannot go on behind step {step()}: "
                f"{reason}. {self._missing(step())}"
            ) from error

    def _last_vote(self) -> bool:
        if self._vote is None:
            return False
        flag, work = self._vote
        self._vote = None
        work.wait(timedelta(seconds=self.timeout_s))
        return bool(flag.item())

    def _beat(self, step: int) -> None:
        now = time.monotonic()
        if self._store is not None and now - self._beaten_at > _BEAT_S:
            self._beaten_at = now
            self._store.set(f"step_of_rank_{self.rank}", str(step))

    def _missing(self, step: int) -> str:
        """Which ranks did not notice themselves that the run cannot go on."""
        assert self._store is not None
        store = self._store
        try:
            store.set(f"stopped_rank_{self.rank}", str(step))
            time.sleep(_HEARING_S)  # the others, too, find out about now
            silent = [
                rank
                for rank in range(self.world_size)
                if rank != self.rank and not store.check([f"stopped_rank_{rank}"])
            ]
            seen = ", ".join(f"rank {rank} ({self._last_heard(rank)})" for rank in silent)
        except RuntimeError:
            return "Who is missing cannot be told: the process that keeps the list is gone"
        if not silent:
            return "All other ranks stopped as well: look for the first message"
        return (
            f"No sign of life from {seen}. See its messages (torchrun --log-dir); the same command "
            "continues from the last checkpoint"
        )

    def _last_heard(self, rank: int) -> str:
        key = f"step_of_rank_{rank}"
        if self._store is None or not self._store.check([key]):
            return "never heard of"
        return f"last heard of at step {int(self._store.get(key))}"


@contextmanager
def join_ranks(timeout_s: float) -> Iterator[Ranks]:
    """Meet the other processes that torchrun started; alone without torchrun.

    Args:
        timeout_s: seconds that a rank waits for the others within a step.

    Raises:
        RuntimeError: they cannot meet, such as where another program has the port.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    timeout = timedelta(seconds=timeout_s)
    try:
        store, rank, world_size = next(iter(rendezvous("env://", timeout=timeout)))
    except dist.DistNetworkError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RuntimeError(
            f"the ranks cannot meet at {place} ({str(error).splitlines()[0]}): give torchrun "
            "another --master-port, or see that the first machine can be reached there"
        ) from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(control, dist.ProcessGroup)
    yield Ranks(
        rank=rank,
        world_size=world_size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        timeout_s=timeout_s,
        control=control,
        _store=PrefixStore("tessera", store),
    )
    # Not behind a failure: to take leave of ranks that are gone may take forever.
    dist.destroy_process_group()
