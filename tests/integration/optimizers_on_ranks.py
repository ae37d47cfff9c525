"""Started by test_optimizers_on_ranks.py: a few steps with every optimiser, then resumed.

    [torchrun --nproc-per-node W] optimizers_on_ranks.py INDEX FOLDER

Prints one JSON line from rank 0: by optimiser, the losses and gradient lengths of an unbroken run
and of the steps behind its checkpoint done again, how far the stored average is from 0, and a
matrix behind two of its updates. AdamW is left to the tests of the losses.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tessera.pipeline.masking import MaskConfig
from tessera.training.checkpoint import load_latest
from tessera.training.config import (
    DataConfig,
    DistributedConfig,
    OptimConfig,
    TrainConfig,
)
from tessera.training.distributed import Ranks, join_ranks
from tessera.training.opening import open_session
from tessera.training.optim import build_optimizer
from tessera.training.optim_config import OptimizerName
from tessera.training.parallel import whole
from tessera.training.run_folder import RunFolder
from tessera.training.session import EMA
from tessera.training.timeline import Timeline

NUM_STEPS, NUM_SAVED = 4, 2
RATES = {"lamb": 1e-2, "lion": 1e-4, "sgd": 1e-2}
NAMES: tuple[OptimizerName, ...] = ("lamb", "lion", "sgd")


def main(index: str, folder: str) -> None:
    torch.set_num_threads(1)
    found = {}
    with join_ranks(60.0) as ranks:
        for name in NAMES:
            config = TrainConfig(
                recipe="test",
                run_dir=str(Path(folder) / name),
                model="tessera-demo",
                total_samples=16 * NUM_STEPS,
                batch_size=16,
                data=DataConfig(train=index, num_threads=1),
                mask=MaskConfig(kind="random"),
                optim=OptimConfig(
                    optimizer=name, learning_rate=RATES[name], max_grad_norm=1.0, ema_samples=1
                ),
                distributed=DistributedConfig(strategy="fsdp"),
                device="cpu",
                precision="float32",
                num_threads=1,
            )
            run_folder = RunFolder(Path(config.run_dir))
            ranks.on_main(partial(run_folder.claim, config))
            found[name] = {
                "whole": steps(config, run_folder, ranks, save_at=NUM_SAVED),
                "again": steps(config, run_folder, ranks, save_at=NUM_STEPS),
            }
            found[name]["matrix"] = update_of_a_matrix(config.optim, ranks)
            if ranks.is_main:
                stored = load_latest(run_folder.checkpoints)
                assert stored is not None
                found[name]["average"] = sum(
                    t.double().abs().sum().item() for t in stored.part(EMA).values()
                )
    if ranks.is_main:
        print(json.dumps(found))


def update_of_a_matrix(config: OptimConfig, ranks: Ranks) -> list[float]:
    """A matrix behind two updates; its halves have other norms than the whole."""
    draw = torch.Generator().manual_seed(0)
    weights, gradient = torch.randn(2, 4, 4, generator=draw)
    weights[:2] *= 100
    layer = nn.Linear(4, 4, bias=False)
    if ranks.world_size > 1:
        mesh = init_device_mesh("cpu", (ranks.world_size,))
        weights, gradient = (distribute_tensor(t, mesh, [Shard(0)]) for t in (weights, gradient))
    layer.weight = nn.Parameter(weights)
    optimizer = build_optimizer(layer, config)
    for _ in range(2):
        layer.weight.grad = gradient.clone()
        optimizer.step()
    return whole(layer.weight).flatten().tolist()


def steps(config: TrainConfig, folder: RunFolder, ranks: Ranks, save_at: int) -> list[float]:
    session = open_session(config, folder, Timeline(), ranks)
    seen = []
    try:
        while session.step < NUM_STEPS:
            session.start_step()
            seen.append(session.update(next(session.loader)).item())
            seen.append(session.grad_norm.item())
            if session.step == save_at:
                session.save()
        session.gather()
    finally:
        session.close()
    return seen


if __name__ == "__main__":
    main(*sys.argv[1:])
