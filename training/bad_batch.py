"""The batch of a step, written down for a person to look at when training broke on it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from tessera.pipeline import Loader
from tessera.training.metrics import NonFiniteLossError
from tessera.training.stages import Stage, architecture
from tessera.training.tensor_file import save_tensors

_NUM_SHOWN = 8


def write_bad_batch(
    error: NonFiniteLossError, loader: Loader, stage: Stage, folder: Path, rank: int
) -> NonFiniteLossError:
    """Make this rank's batch of the broken step again, and write it with what it is.

    A loader is a pure function of the step, so nothing need be kept for this. With a mask that
    follows the model's patch projection, the mask is the one of the last refresh.

    Args:
        error: names the step.
        loader: of the run; its iteration is not moved.
        stage: that the step belongs to.
        folder: for the file; made if it is not there.
        rank: of this process.

    Returns:
        An error whose message also says where the batch lies, which samples are in it, and how to
        look at them.
    """
    step = error.step - stage.first_step - 1  # the loader counts from 0
    batch = loader.assemble(step).to("cpu")
    tensors = {name: tensor.contiguous() for name, tensor in batch.tensors().items()}
    ids = batch.sample_ids.tolist()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bad_batch_step_{error.step:09d}_rank_{rank}.safetensors"
    about = {"step": error.step, "loader_step": step, "stage": stage.number, "rank": rank}
    save_tensors(tensors, path, metadata={"tessera": json.dumps(about)})
    more = ", ..." if len(ids) > _NUM_SHOWN else ""
    shown = ", ".join(map(str, ids[:_NUM_SHOWN])) + more
    return NonFiniteLossError(
        f"{error}.\nIts batch on rank {rank} ({len(ids)} pairs, sample ids {shown}) is in\n"
        f"  {path}\n"
        "whose tensors are the fields of PackedBatch: safetensors.torch.load_file opens it. To see "
        f"the pictures:\n  {inspection(stage, step)}",
        error.step,
    )


def inspection(stage: Stage, step: int) -> str:
    """The command that draws the batch of a step.

    Args:
        stage: of the run.
        step: of the stage, counted from 0.
    """
    config = stage.config
    low, high = config.data.crop.scale
    model = architecture(config)
    return (
        f"python tools/inspect_batch.py {shlex.join(config.data.train_sets)} --step {step} "
        f"--image-size {model.vision.image_size} --patch-size {model.vision.patch_size} "
        f"--context-length {model.text.context_length} "
        f"--batch-size {config.batch_size} --seed {config.seed} "
        f"--captions {' '.join(config.data.captions)} --crop.scale {low} {high} "
        f"--mask.kind {config.mask.kind} --mask.mask-ratio {config.mask.mask_ratio}"
    )
