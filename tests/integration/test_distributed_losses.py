"""Training on 2 and 4 gloo ranks equals training on one, for every loss, state included.

Processes run this file; each is one rank of torch.distributed and saves what rank 0 found.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # of the processes it starts

from tessera.model import LossConfig, build_loss
from tessera.model.losses.config import LossKind, MultiText
from tests.unit.model.losses.linear_towers import (
    NUM_SAMPLES,
    STEPS_PER_PASS,
    Towers,
    Trained,
    train,
)

ROOT = Path(__file__).resolve().parents[2]
MULTI_TEXT = get_args(MultiText)
KINDS = (*get_args(LossKind), *MULTI_TEXT)
"""Losses, and CLIP's of three texts an image by their definitions."""
TILES = (0, 3)
FIRST, SECOND = range(7), range(7, 12)
"""Steps before and after a checkpoint; the second pass of three steps begins at 3."""


def config_of(kind: str, tile_size: int) -> LossConfig:
    if kind in MULTI_TEXT:
        return replace(config_of("clip", tile_size), multi_text=kind)
    return LossConfig(
        kind=kind,  # pyright: ignore[reportArgumentType]
        tile_size=tile_size,
        label_smoothing=0.1 if kind == "clip" else 0.0,
        gamma_decay_passes=3,
        temperature_learning_rate=0.01,
    )


def run(
    kind: str, tile_size: int, steps: range, before: Trained | None = None, **ranks: int
) -> Trained:
    """Train over some steps, from the start or from what was saved."""
    towers = Towers()
    loss = build_loss(
        config_of(kind, tile_size), num_samples=NUM_SAMPLES, steps_per_pass=STEPS_PER_PASS
    )
    if before is not None:
        towers.load_state_dict(before.parameters)
        loss.load_state_tensors(before.state)
    return train(loss, steps, towers, num_texts=3 if kind in MULTI_TEXT else 1, **ranks)


def work(out: Path, start: Path | None) -> None:
    """One rank: all losses, and all over again from another number of ranks' states."""
    dist.init_process_group("gloo")
    ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    begun = {} if start is None else torch.load(start, weights_only=True)
    found = {}
    for kind in KINDS:
        for tile_size in TILES:
            name = f"{kind} {tile_size}"
            found[name] = asdict(run(kind, tile_size, FIRST, None, **ranks))
            if name in begun:
                before = Trained(**begun[name])
                found[f"{name} resumed"] = asdict(run(kind, tile_size, SECOND, before, **ranks))
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def launch(size: int, directory: Path, start: Path | None = None) -> Path:
    out = directory / f"{size}.pt"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(out), *([str(start)] if start else [])],
            cwd=ROOT,
            env=os.environ
            | {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
        )
        for port in [_free_port()]
        for rank in range(size)
    ]
    try:
        assert [process.wait(timeout=200) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
    return out


def _free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Trained]]:
    """What 4 ranks found, and 2 ranks, which also went on from what 4 had saved."""
    directory = tmp_path_factory.mktemp("ranks")
    four = launch(4, directory)
    two = launch(2, directory, start=four)
    return {
        size: {name: Trained(**each) for name, each in torch.load(path, weights_only=True).items()}
        for size, path in ((4, four), (2, two))
    }


def assert_same(found: Trained, wanted: Trained) -> None:
    assert found.losses == pytest.approx(wanted.losses, rel=1e-5)
    torch.testing.assert_close(found.parameters, wanted.parameters, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.state, wanted.state, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("tile_size", TILES)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_train_as_one(trained, kind: str, tile_size: int, size: int) -> None:
    alone = run(kind, tile_size, FIRST)
    assert len(set(alone.losses)) == len(FIRST), "the run goes somewhere"
    assert_same(trained[size][f"{kind} {tile_size}"], alone)


@pytest.mark.parametrize("tile_size", TILES)
@pytest.mark.parametrize("kind", KINDS)
def test_saved_by_four_resumed_by_two_and_one(trained, kind: str, tile_size: int) -> None:
    name = f"{kind} {tile_size}"
    unbroken = run(kind, tile_size, range(SECOND.stop))
    unbroken.losses = unbroken.losses[SECOND.start :]
    assert_same(trained[2][f"{name} resumed"], unbroken)
    assert_same(run(kind, tile_size, SECOND, before=trained[4][name]), unbroken)


def test_state_of_another_loss_or_index_is_refused() -> None:
    def built(kind: str, num_samples: int = 9):
        return build_loss(config_of(kind, 0), num_samples=num_samples, steps_per_pass=1)

    state = built("fastclip_v3").state_tensors()
    with pytest.raises(ValueError, match="9 samples"):
        built("fastclip_v3").load_state_tensors(built("fastclip_v3", 10).state_tensors())
    for other in ("clip", "fastclip_v1", "fastclip_v2"):
        with pytest.raises(ValueError, match="loss that the run began with"):
            built(other).load_state_tensors(state)
    with pytest.raises(ValueError, match="loss that the run began with"):
        built("fastclip_v2").load_state_tensors(built("fastclip_v1").state_tensors())
    with pytest.raises(ValueError, match="loss that the run began with"):
        built("fastclip_v3").load_state_tensors({})


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
