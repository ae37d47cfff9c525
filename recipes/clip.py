"""CLIP without masking: what the other recipes are compared with.

Paper: Radford et al., 2021, arXiv 2103.00020. Its data were never released; the recipes here are
the baselines that Cluster Masking and FLIP trained themselves.

Where the baselines' code and Tessera differ, in all recipes that build on them:

- fp16 with a gradient scaler (Cluster Masking) and float32 (FLIP) there, bfloat16 products here.
- Captions are padded to 77 or 32 tokens there and packed here; what is learned is the same.
- COCO R@1 in the recipes is image to text / text to image. Cluster Masking's tables print the
  names the other way round; CLIP-PGS has the same numbers under the right ones.
- A pass is rounded up to whole batches of all workers there; here the budget is in pairs.
- FLIP's text tower reads BERT's tokens, 32 of them, in both directions and is pooled at the first;
  its image tower has fixed positions, no layer norm before the first block and mean pooling. Here
  the towers are open_clip's: CLIP's tokens, causal, the end token and the class token.
- FLIP decays the class token and the logit scale, not the position tables, and normalises by
  ImageNet's mean; here vectors, scalars, gains and biases have no decay, learned position tables
  have it, and the mean is CLIP's.
- FLIP's ImageNet figures are with 7 templates, Cluster Masking's and ours with open_clip's 80.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tessera.pipeline.augment_config import AugmentConfig
from tessera.pipeline.crops import CropConfig
from tessera.pipeline.masking import MaskConfig
from tessera.recipes.datasets import CC12M, CC12M_PAIRS, IMAGENET_PASS, LAION
from tessera.training.config import DataConfig, OptimConfig, TrainConfig


def clip() -> TrainConfig:
    """CLIP, ViT-B/16 on CC12M: the baseline of Cluster Masking's tables.

    Data: CC12M, 32 passes (docs/data.md).
    Command: `python train.py clip` on one GPU with `--accumulation 8`, or on eight
    `torchrun --nproc-per-node 8 train.py clip`.
    Hardware: 8 GPUs of unknown type in the paper; Tessera's own need is not measured.
    Cost: 35.8 EFLOP, 33 GPU-hours at 300 TFLOP/s (assumed).
    Published: ImageNet zero-shot 36.1, linear probe 62.3, COCO R@1 34.6 / 23.5 (Wei et al., CVPR
    2024, read off the tables on the project's page); 36.5 with 30 passes, batch 1,280, learning
    rate 1e-3 and crops from 0.5 (table of the repository MingliangLiang3/GLIP).
    Measured: not at this size; tiny runs of this and other masks are in
    docs/results/comparison-cpu.md.
    Differs: the released code cannot train this baseline (`patch_dropout=0` ends in a TypeError)
    and scales the learning rate by the batch of one GPU; see the module for the rest.
    """
    return TrainConfig(
        recipe="clip",
        run_dir="runs/clip",
        model="ViT-B-16",
        total_samples=32 * CC12M_PAIRS,
        batch_size=2048,
        mask=MaskConfig(kind="none"),
        data=DataConfig(train=CC12M, crop=CropConfig(scale=(0.9, 1.0))),
        optim=OptimConfig(
            learning_rate=5e-4, warmup=2000 * 2048 / (32 * CC12M_PAIRS), weight_decay=0.2
        ),
        save_every=1000,
    )


def clip_laion() -> TrainConfig:
    """CLIP, ViT-L/16 on LAION-400M, 6.4 passes: FLIP's own baseline (table 1a, 0% masked).

    Data: LAION-400M as img2dataset's shards; `--data.train` names other sets of that kind, such as
    YFCC15M. On CC12M: `python train.py clip-laion --data.train data/cc12m/index`
    with `--total-samples 350993248 --optim.warmup-samples 4096000`.
    Command: `torchrun --nproc-per-node 8 train.py clip-laion --accumulation 16`, or as it is on
    a few nodes (docs/scaling.md). For FLIP's table 2: `--total-samples 12811670000`.
    Hardware: 256 TPU-v3 cores in the paper.
    Cost: 934.2 EFLOP, 865 GPU-hours at 300 TFLOP/s (assumed).
    Published: ImageNet zero-shot 68.6 (batch 16,384); 72.4 after 32 passes (table 2).
    Measured: not yet.
    Differs: see the module.
    """
    return TrainConfig(
        recipe="clip-laion",
        run_dir="runs/clip-laion",
        model="ViT-L-16",
        total_samples=2000 * IMAGENET_PASS,
        batch_size=16_384,
        context_length=32,
        mask=MaskConfig(kind="none"),
        data=DataConfig(
            train=LAION,
            crop=CropConfig(scale=(0.5, 1.0)),
            augment=AugmentConfig(flip=0.5),
            order="window",
        ),
        optim=OptimConfig(
            learning_rate=4e-6,
            base_batch_size=256,
            warmup=40 / 2000,
            weight_decay=0.2,
            beta2=0.95,
            eps=1e-8,
        ),
        save_every=1000,
    )


def derived(base: TrainConfig, name: str, **changes: Any) -> TrainConfig:
    """A recipe like another one but for some fields, with a name and a run folder of its own."""
    return replace(base, recipe=name, run_dir=f"runs/{name}", **changes)
