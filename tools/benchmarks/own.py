"""Our sides: the loader as training uses it, and its steps made one at a time."""

from __future__ import annotations

import time

import torch

from tessera.pipeline import open_loader
from tessera.pipeline.stats import LoaderStats
from tessera.tools.benchmarks.side import Setting, Work


class LoaderSide:
    """The loader with its threads, as training uses it."""

    def __init__(self, setting: Setting) -> None:
        """Open it."""
        self._loader = open_loader(setting.reference, setting.loader_config())
        # Two queues, a batch in each thread, and one to start with.
        self.ahead = 2 * self._loader.config.prefetch + 3

    def run(self, num_batches: int) -> Work:
        """Take batches."""
        before = self._loader.stats.snapshot()
        batches = (next(self._loader) for _ in range(num_batches))
        num_bytes = num_images = 0
        for batch in batches:
            num_bytes += batch.num_bytes
            num_images += batch.num_samples
        done = self._loader.stats.since(before)
        known = {"num_bytes": num_bytes, "bottleneck": str(done.slowest()), **_stages(done)}
        return Work(num_images=num_images, known=known)

    def close(self) -> None:
        """End the loader's threads."""
        self._loader.close()


class StepwiseSide:
    """Read, decode, patchify, mask, pack, copy: one after the other, nothing ahead.

    Copy is a rung where there is a GPU, and holds the wait for the transfer. With decoding on the
    GPU the stages before it hold the time to launch their work, and copy the wait for all of it.
    """

    ahead = 1

    def __init__(self, setting: Setting) -> None:
        """Open the loader; its threads are never started."""
        self._loader = open_loader(setting.reference, setting.loader_config())
        self._step = 0
        self._has_gpu = torch.cuda.is_available()

    def run(self, num_batches: int) -> Work:
        """Make batches."""
        before = self._loader.stats.snapshot()
        num_images = num_bytes = 0
        transfer_s = 0.0
        for _ in range(num_batches):
            batch = self._loader.assemble(self._step)
            self._step += 1
            num_images += batch.num_samples
            num_bytes += batch.num_bytes
            if self._has_gpu:
                start = time.perf_counter()
                torch.cuda.synchronize()
                transfer_s += time.perf_counter() - start
        known = _stages(self._loader.stats.since(before))
        known["busy_s"]["copy"] += transfer_s
        if not self._has_gpu:
            for stages in known.values():
                del stages["copy"]
        return Work(num_images=num_images, known={"num_bytes": num_bytes, **known})

    def close(self) -> None:
        """Close the shards."""
        self._loader.close()


def _stages(stats: LoaderStats) -> dict[str, dict[str, float]]:
    stages = stats.stages()
    return {
        "busy_s": {name: stage.busy_s for name, stage in stages.items()},
        "input_wait_s": {name: stage.input_wait_s for name, stage in stages.items()},
        "output_wait_s": {name: stage.output_wait_s for name, stage in stages.items()},
        "num_samples": {name: stage.num_samples for name, stage in stages.items()},
        "stage_bytes": {name: stage.num_bytes for name, stage in stages.items()},
    }
