"""LLM2CLIP, stage 2: an image tower trained against a frozen language model's embeddings.

Paper: Huang et al., arXiv 2411.04997 (v6), code microsoft/LLM2CLIP. Two remedies for what
classification loses: ProCLIP. Stage 1 and the embeddings are tools' work (docs/llm2clip.md):

    python tools/embed_captions.py data/cc12m/index --encoder models/llm --name llm \
        --sources caption long
    python tools/embed_captions.py data/flickr30k/index --encoder models/llm --name llm \
        --sources caption

Where the paper, its code and Tessera differ, in both recipes:

- Dense captions: `long` is a source that you add (docs/captions.md); the paper's are DreamLIP's.
  Half of the texts drawn are raw, as in the paper; its code draws two kinds of dense ones alone.
- Data: the paper trains on CC3M and CC12M together; here CC12M alone makes the four passes.
- Betas 0.9 and 0.999 and eps 1e-8 are the code's, the paper names none; gradients are cut at 5 as
  in the code. No warm-up. The paper's "decay 0.05" is taken as weight decay, as in the code.
- Rates. The released code cuts the rate of the patch projection and of the positions by all layers,
  and leaves the class embedding and the norm before the blocks at the full one; its position table
  has no weight decay. Here all four have the lowest rate, and learned positions decay.
  `--optim.layer-rule eva_clip` is the code's way.
- The embeddings are of a model of 2048 channels (the 1B model of the paper's ablations). For others
  set `--text-side.dim`.
- Classification is always measured, so the run wants the encoder's folder and refuses to start
  without it. Independent runs lose about 20 points on ImageNet where the paper reports at most 1.2.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tessera.pipeline.crops import CropConfig
from tessera.pipeline.index.dataset import parse_reference
from tessera.pipeline.masking import MaskConfig
from tessera.recipes.clip import derived
from tessera.recipes.datasets import CC12M, CC12M_PAIRS, require_index
from tessera.training import miniature
from tessera.training.config import (
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
)
from tessera.training.tower_config import ImageSideConfig, TextSideConfig

_BATCH = 4096
_PASSES = 4
_OPTIM = OptimConfig(
    learning_rate=1e-5,
    weight_decay=0.05,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    max_grad_norm=5.0,
    layer_decay=0.85,
)


def llm2clip() -> TrainConfig:
    """LLM2CLIP, ViT-L/14 of OpenAI on CC12M, four passes: adapter and image tower.

    Data: CC12M with the caption source `long`, both embedded (see the module); ImageNet's val
    folder at data/imagenet/val, and an index of Flickr30k's test pairs at data/flickr30k/index.
    Command: `torchrun --nproc-per-node 8 train.py llm2clip --accumulation 4`
    Hardware: 16 A100 (40 GB) for 1.3 hours with stored embeddings, at a batch of 16,384.
    Cost: 20.6 EFLOP, 19 GPU-hours at 300 TFLOP/s; the image tower is trained and no text tower
    runs. The language model reads the captions once before, which is not counted.
    Published: with 15 M pairs and the 8B model, R@1 Flickr30k 93.0 / 83.5, COCO 67.4 / 56.4, from
    85.2 / 65.0 and 56.3 / 36.5; ImageNet 73.2 from 73.7. ProCLIP's own runs of it: ImageNet 52.8
    from 74.5.
    Measured: not yet at this size; a small comparison is in docs/results/llm2clip-cpu.md.
    Differs: see the module.
    """
    return TrainConfig(
        recipe="llm2clip",
        run_dir="runs/llm2clip",
        model="ViT-L-14-quickgelu",
        init_from="openai",
        total_samples=_PASSES * CC12M_PAIRS,
        batch_size=_BATCH,
        data=DataConfig(
            train=CC12M, captions=("caption", "long=1"), crop=CropConfig(scale=(0.9, 1.0))
        ),
        mask=MaskConfig(kind="none"),
        text_side=TextSideConfig(embeddings="llm", dim=2048, embed_dim=1280),
        optim=_OPTIM,
        evaluation=EvaluationConfig(
            zero_shot=("data/imagenet/val",),
            retrieval=("data/flickr30k/index",),
            text_encoder="models/llm",
        ),
    )


def llm2clip_distilled() -> TrainConfig:
    """LLM2CLIP with ProCLIP's two remedies: the adapter learns first, the image tower stays near.

    Stage 1 trains the adapter alone, to give what CLIP's text tower gives; stage 2 trains as
    `llm2clip` and holds the image features to those of the average of the weights.

    Data: as `llm2clip`.
    Command: `torchrun --nproc-per-node 8 train.py llm2clip-distilled --accumulation 4`
    Hardware: not known to us.
    Cost: 27.6 EFLOP, 26 GPU-hours at 300 TFLOP/s. Stage 1 decodes pictures that it does not
    look at.
    Published: by ProCLIP, 3 M pairs, ViT-L/14, ImageNet 62.5 (52.8 without, 74.5 of CLIP),
    retrieval over six sets 83.0 / 80.5.
    Measured: not yet.
    Differs: see the module. The features keep CLIP's own length, so that its projections stay. The
    rate of stage 1, the average's half-life and the sum of the two terms of the distillation are
    ours: our source names the terms, the batch (1024), the passes (4) and the weight (4e-4) alone.
    """
    base = llm2clip()
    return derived(
        base,
        "llm2clip-distilled",
        batch_size=1024,
        optim=replace(_OPTIM, learning_rate=1e-3, layer_decay=1.0),
        text_side=replace(base.text_side, embed_dim=0, distill=True),
        image_side=ImageSideConfig(self_distillation=4e-4),
        stages=(
            StageConfig(
                total_samples=_PASSES * CC12M_PAIRS,
                batch_size=_BATCH,
                optim=replace(_OPTIM, ema_samples=1_000_000),
            ),
        ),
    )


def require_embeddings(config: TrainConfig) -> None:
    """Make sure that a recipe's index is there; embed the captions of a miniature.

    Args:
        config: of the run.

    Raises:
        FileNotFoundError: the index is missing; gives the commands that make it.
    """
    require_index(config)
    train = parse_reference(config.data.train_references[0]).index_dir
    if train == miniature.TRAIN:
        from tessera.recipes.miniature_data import embed_miniature

        sources = tuple(item.partition("=")[0] for item in config.data.captions)
        encoder = Path(config.evaluation.text_encoder)
        embed_miniature(encoder, config.text_side.embeddings, {train: sources})
