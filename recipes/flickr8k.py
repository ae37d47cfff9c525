"""A small CLIP on the 6,000 training photos of Flickr8k (Hodosh, Young and Hockenmaier, 2013)."""

from __future__ import annotations

from tessera.pipeline.crops import CropConfig
from tessera.pipeline.index.dataset import parse_reference
from tessera.pipeline.masking import MaskConfig
from tessera.training.config import DataConfig, EvaluationConfig, OptimConfig, TrainConfig

_TRAIN = "data/flickr8k/train"
_DEV = "data/flickr8k/dev"


def flickr8k() -> TrainConfig:
    """Train from nothing on 6,000 photos with five captions each, one drawn per visit.

    Says nothing about any photo but Flickr8k's own: it is there to compare masks with each other
    on real pictures, on a machine without a GPU, in half an hour.

    Data: the official splits as img2dataset-style shards with all five captions in the json.

        python tools/index_shards.py SHARDS/flickr8k-train --out data/flickr8k/train \
            --captions json:captions
        python tools/index_shards.py SHARDS/flickr8k-dev --out data/flickr8k/dev \
            --captions json:captions

    Command: `python train.py flickr8k --mask.kind cluster` (or `none`, `random`).
    Result: docs/results/foundation-cpu.md.
    """
    return TrainConfig(
        recipe="flickr8k",
        run_dir="runs/flickr8k",
        model="tessera-xs-16",
        total_samples=64_000,
        batch_size=128,
        data=DataConfig(train=_TRAIN, crop=CropConfig(scale=(0.5, 1.0))),
        mask=MaskConfig(kind="cluster"),
        optim=OptimConfig(learning_rate=1e-3, warmup=0.1, weight_decay=0.2),
        evaluation=EvaluationConfig(retrieval=(_DEV,)),
        precision="bfloat16",
        log_every=20,
        save_every=100,
    )


def require_flickr8k(config: TrainConfig) -> None:
    """Make sure that the recipe's own indexes are there; other data are the caller's affair.

    Raises:
        FileNotFoundError: one is missing; gives the command that makes it.
    """
    for index_dir in (*config.data.train_references, *config.evaluation.retrieval):
        folder = parse_reference(index_dir).index_dir
        shards = {_TRAIN: "flickr8k-train", _DEV: "flickr8k-dev"}.get(folder.as_posix())
        if shards and not (folder / "index.json").is_file():
            raise FileNotFoundError(
                f"there is no index at {folder}; make it with\n  python tools/index_shards.py "
                f"SHARDS/{shards} --out {folder} --captions json:captions\n"
                f"where SHARDS/{shards} is the folder of the tar files"
            )
