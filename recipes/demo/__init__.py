"""The demo: a small CLIP on pictures that it draws itself, in a few minutes on a CPU."""

from __future__ import annotations

from pathlib import Path

from tessera.pipeline.crops import CropConfig
from tessera.pipeline.index.caption_mix import parse_weights
from tessera.pipeline.index.dataset import parse_reference
from tessera.pipeline.masking import MaskConfig
from tessera.training import miniature
from tessera.training.config import DataConfig, EvaluationConfig, OptimConfig, TrainConfig

__all__ = ["demo", "draw_demo_data", "draw_miniature_data"]

_ROOT = Path("data/demo")
_NUM_TRAIN = 12_000
_NUM_HELDOUT = 600
_NUM_MINI_TRAIN = 256
_NUM_MINI_HELDOUT = 64


def demo() -> TrainConfig:
    """Train on 12,000 drawn scenes with half of the patches masked by clusters.

    The 600 held-out pictures show colours on backgrounds on which no training picture has them;
    these 26 pairs, such as "a red object on the sand", are the zero-shot classes. What the objects
    are is in every caption as well, but the demo is too short to learn 32 outlines: it tells
    colours, backgrounds, sizes and numbers apart, and kinds of object hardly better than chance.

    Command: `python train.py`
    Data: drawn by the recipe itself, about 80 MB under data/demo.
    Hardware and result: 2 CPU cores, 2.5 minutes, docs/results/foundation-cpu.md.
    """
    return TrainConfig(
        recipe="demo",
        run_dir="runs/demo",
        model="tessera-demo",
        total_samples=32_000,
        batch_size=128,
        mask=MaskConfig(kind="cluster", mask_ratio=0.5),
        data=DataConfig(train=str(_ROOT / "index" / "train"), crop=CropConfig(scale=(0.7, 1.0))),
        optim=OptimConfig(learning_rate=1.5e-3, warmup=0.1, weight_decay=0.1),
        evaluation=EvaluationConfig(
            zero_shot=(str(_ROOT / "index" / "heldout"),),
            retrieval=(str(_ROOT / "index" / "heldout"),),
        ),
        log_every=50,
        save_every=100,
    )


def draw_demo_data(config: TrainConfig) -> None:
    """Draw and index the pictures, unless they are there or the run uses other data.

    Args:
        config: of the run.
    """
    folders = [parse_reference(each).index_dir for each in config.data.train_references]
    if Path(str(demo().data.train)) not in folders:
        return
    from tessera.recipes.demo.drawing import draw_data

    draw_data(_ROOT, num_train=_NUM_TRAIN, num_heldout=_NUM_HELDOUT)


def draw_miniature_data(config: TrainConfig) -> None:
    """Draw and index the pictures of a miniature, unless the run uses other data.

    Caption sources and the selection that the run names are made with them.

    Args:
        config: of the run.
    """
    train = parse_reference(config.data.train_references[0])
    if train.index_dir != miniature.TRAIN:
        return
    from tessera.recipes.demo.drawing import (
        draw_data,
        select_half,
        tag_captions,
        write_captions_again,
    )

    draw_data(miniature.ROOT, num_train=_NUM_MINI_TRAIN, num_heldout=_NUM_MINI_HELDOUT)
    for name, _ in parse_weights(config.data.captions):
        write_captions_again(miniature.ROOT, name)
    tag_captions(miniature.ROOT)
    if train.selection:
        select_half(miniature.ROOT, train.selection)
