"""What a run will need, worked out before it starts: memory, products and time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from tessera.model import Clip
from tessera.model.config import ClipConfig, TextConfig, VisionConfig
from tessera.training.config import TrainConfig
from tessera.training.optim_config import OptimizerName
from tessera.training.tower_config import TowerTuning

_STATES: dict[OptimizerName, int] = {"adamw": 2, "lamb": 2, "lion": 1, "sgd": 1}
"""Tensors of the optimiser for each parameter."""
_SAVED_VALUES = 17
"""Values that a block keeps for its backward pass, for each token and channel (about)."""
_MATRIX = 1024
"""Side of the matrices whose product is timed."""
_TIMED_S = 0.3
"""Seconds of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Tokens of a pair, in the mean."""

    image: float
    """Visible patches and the class token."""
    text: float
    """Start and end included; of all texts of an image that are served together."""


def memory_bytes(config: TrainConfig, clip: Clip, tokens: Tokens, world_size: int = 1) -> int:
    """About what a rank's training takes: weights, gradients, optimiser and activations.

    Neither the libraries nor the loader are counted.

    Args:
        config: of the stage.
        clip: what is trained requires a gradient; may be on the meta device.
        tokens: of a pair.
        world_size: ranks that share the batch.
    """
    parameters = [(p.numel(), p.requires_grad) for p in clip.parameters()]
    held = sum(number for number, _ in parameters)
    trained = sum(number for number, is_trained in parameters if is_trained)
    averages = held if config.optim.ema_samples else 0
    states = 4 * (held + averages + trained * (1 + _STATES[config.optim.optimizer]))
    if config.distributed.strategy == "fsdp":
        states //= world_size
    return states + _activation_bytes(config, clip.config, tokens, world_size)


def _activation_bytes(
    config: TrainConfig, model: ClipConfig, tokens: Tokens, world_size: int
) -> int:
    size = 2 if compute_type(config) == torch.bfloat16 else 4
    chunk = config.batch_size // world_size // config.accumulation
    total = 0.0
    for tower, count in _towers(model, tokens):
        block = _SAVED_VALUES * tower.width
        kept = tower.layers * block
        if config.checkpoint_blocks:
            kept = tower.layers * tower.width + block
        total += chunk * count * kept * size
    features = 4 * config.batch_size * model.embed_dim * 2
    return round(total) + features


def step_flops(config: TrainConfig, model: ClipConfig, tokens: Tokens) -> float:
    """Operations of a step's matrix products over all ranks: forward, backward, recomputation."""
    again = (config.accumulation > 1) + config.checkpoint_blocks
    total = 0.0
    for tower, count in _towers(model, tokens):
        matrices = tower.layers * tower.width * (4 * tower.width + 2 * tower.mlp_width)
        attention = 2 * tower.layers * count * tower.width
        forward = 2 * count * (matrices + attention)
        is_image = tower is model.vision
        side = config.image_side if is_image else config.text_side
        taught = 0.0 if config.text_side.distill and not is_image else _share_taught(side, tower)
        total += forward * (1 + (2 + again) * taught)
    total += 6 * tokens.image * 3 * model.vision.patch_size**2 * model.vision.width
    if adapter := model.adapter:
        blocks = adapter.layers * 2 * adapter.embedding_dim * adapter.hidden_width
        total += (6 + 2 * again) * (blocks + adapter.embedding_dim * model.embed_dim)
    similarities = 6 * config.batch_size * model.embed_dim
    return config.batch_size * (total + similarities)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on this machine, timed here and now."""
    left, right = (torch.randn(_MATRIX, _MATRIX, device=device, dtype=dtype) for _ in range(2))

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    _ = left @ right
    wait()
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < _TIMED_S:
        for _ in range(4):
            _ = left @ right
        wait()
        count += 4
    return 2 * _MATRIX**3 * count / spent


def compute_type(config: TrainConfig) -> torch.dtype:
    """Of the run's matrix products, on the device that it takes."""
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    low = config.precision in ("bfloat16", "pure_bfloat16")
    return torch.bfloat16 if low or (config.precision == "auto" and on_gpu) else torch.float32


def _share_taught(side: TowerTuning, tower: VisionConfig | TextConfig) -> float:
    """Share of a tower's blocks that the backward pass goes through."""
    if side.tune == "last":
        return min(1.0, side.last_blocks / tower.layers)
    return 0.0 if side.tune in ("frozen", "projection") else 1.0


def _towers(model: ClipConfig, tokens: Tokens) -> list:
    towers = [(model.vision, tokens.image)]
    return [*towers, (model.text, tokens.text)] if model.has_text_tower else towers
