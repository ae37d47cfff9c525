"""Where a run decodes: as it was told to, as it did before, or as a trial of the GPU shows."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from tessera.pipeline import Loader, LoaderConfig
from tessera.pipeline.decode_device import DecodeDevice, Prober, choose_device, probe_device
from tessera.pipeline.decoding.gpu_trial import find_graph
from tessera.training.checkpoint import Checkpoint
from tessera.training.config import TrainConfig
from tessera.training.distributed import Ranks

logger = logging.getLogger(__name__)


def settle_decoding(
    config: TrainConfig,
    share: LoaderConfig,
    ranks: Ranks,
    device: torch.device,
    found: Checkpoint | None,
    probe: Prober = find_graph,
) -> LoaderConfig:
    """Say where this rank decodes: as asked for, as the run did before, or as a trial shows.

    One process of each machine tries the GPU decoder, and all ranks take what rank 0 makes of it.

    Args:
        config: of the stage.
        share: the loader's configuration on this rank.
        ranks: of the run.
        device: of the model on this rank.
        found: the checkpoint that the run goes on from.
        probe: what tries the GPU decoder.

    Raises:
        ValueError: the GPU was asked for, and its decoder fails.
    """
    wanted = config.data.device
    if wanted == "cpu" or (wanted == "auto" and device.type == "cpu"):
        return replace(share, device="cpu")
    if not torch.cuda.is_available():
        raise ValueError("--data.device cuda: torch sees no GPU here; take --data.device auto")
    gpu = str(device) if device.type == "cuda" else "cuda"
    before = DecodeDevice.restored(found.state) if found else None
    if before and (wanted == "auto" or before.device == "cuda"):
        chosen = before
    elif wanted == "auto" and config.data.decoder not in ("auto", "dali"):
        chosen = DecodeDevice(device="cpu", reason=f"decoder {config.data.decoder} works there")
    else:
        tries = ranks.local_rank == 0
        on_gpu = replace(share, device=gpu)
        reference = config.data.train_references[0]  # one set's pictures are enough
        trial = probe_device(reference, on_gpu, probe=probe) if tries else None
        trials = [each for each in ranks.gather(trial) if each is not None]
        chosen = ranks.on_main(lambda: choose_device(trials, by_speed=wanted == "auto"))
    if wanted == "cuda" and chosen.device == "cpu":
        raise ValueError(f"--data.device cuda: {chosen.reason}; take --data.device auto or cpu")
    if ranks.is_main:
        logger.info("pictures are decoded on %s: %s", chosen.device, chosen.reason)
    on_cuda = chosen.device == "cuda"
    return replace(share, device=gpu if on_cuda else "cpu", dali_graph=chosen.graph)


def decode_device(loader: Loader) -> DecodeDevice:
    """Where a loader decodes; a checkpoint keeps it."""
    device = "cuda" if loader.config.device.startswith("cuda") else "cpu"
    return DecodeDevice(device=device, graph=loader.config.dali_graph)
