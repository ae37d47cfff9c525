"""Started by torchrun from test_distributed_train.py: a few steps with every loss, then resumed.

    torchrun --nproc-per-node W losses_on_ranks.py INDEX FOLDER STRATEGY ACCUMULATION KIND...

A KIND is a loss, or the definition of CLIP's loss over several texts: both captions of each sample.
Prints one JSON line from rank 0: by loss, the losses of an unbroken run, and those of the steps
behind its first checkpoint done again by a second session that starts from there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tessera.model import LossConfig
from tessera.model.losses.config import MultiText
from tessera.pipeline.masking import MaskConfig
from tessera.training.config import DataConfig, DistributedConfig, OptimConfig, TrainConfig
from tessera.training.distributed import Ranks, join_ranks
from tessera.training.opening import open_session
from tessera.training.run_folder import RunFolder
from tessera.training.timeline import Timeline

NUM_STEPS = 3
NUM_SAVED = 2


def main(index: str, folder: str, strategy: str, accumulation: str, *kinds: str) -> None:
    torch.set_num_threads(1)
    found = {}
    with join_ranks(60.0) as ranks:
        for kind in kinds:
            config = TrainConfig(
                recipe="test",
                run_dir=str(Path(folder) / kind),
                model="tessera-demo",
                total_samples=16 * NUM_STEPS,
                batch_size=16,
                data=DataConfig(train=index, num_threads=1),
                mask=MaskConfig(kind="cluster"),
                optim=OptimConfig(learning_rate=1e-3, max_grad_norm=1.0),
                accumulation=int(accumulation),
                distributed=DistributedConfig(strategy="fsdp" if strategy == "fsdp" else "ddp"),
                device="cpu",
                precision="float32",
                num_threads=1,
                log_sample_ids=True,
            )
            if kind in get_args(MultiText):
                data = replace(config.data, captions=("caption=2",), every_text=True)
                config = replace(config, data=data, loss=LossConfig(multi_text=kind))  # pyright: ignore[reportArgumentType]
            else:
                config = replace(config, loss=LossConfig(kind=kind))  # pyright: ignore[reportArgumentType]
            folder_of_kind = RunFolder(Path(config.run_dir))
            ranks.on_main(partial(folder_of_kind.claim, config))
            whole = steps(config, folder_of_kind, ranks, save_at=NUM_SAVED)
            again = steps(config, folder_of_kind, ranks, save_at=None)
            found[kind] = {"whole": whole, "again": again}
    if ranks.is_main:
        print(json.dumps(found))


def steps(config: TrainConfig, folder: RunFolder, ranks: Ranks, save_at: int | None) -> list[float]:
    session = open_session(config, folder, Timeline(), ranks)
    losses = []
    try:
        while session.step < NUM_STEPS:
            session.refresh_mask()
            session.start_step()
            losses.append(session.update(next(session.loader)).item())
            if session.step == save_at:
                session.save()
        session.gather()
    finally:
        session.close()
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
