"""What of a model is trained: its text side and its image side, as the configuration has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from tessera.model import Clip
from tessera.model.config import ClipConfig
from tessera.model.lora import add_lora, load_lora_state
from tessera.model.text import TextTower
from tessera.model.vit import ImageTower
from tessera.pipeline import Loader
from tessera.training.config import TrainConfig
from tessera.training.tower_config import TowerTuning


def with_encoder(architecture: ClipConfig, loader: Loader) -> ClipConfig:
    """The model of a run, with the name of what made its loader's embeddings.

    Raises:
        ValueError: the stored embeddings are of another length than the model reads.
    """
    adapter, embeddings = architecture.adapter, loader.embeddings
    if adapter is None or embeddings is None:
        return architecture
    if adapter.embedding_dim != embeddings.dim:
        raise ValueError(
            f"text_side.dim is {adapter.embedding_dim}, and the embeddings "
            f"{loader.config.text_embeddings!r} of {embeddings.encoder.identity} have "
            f"{embeddings.dim} numbers each: set --text-side.dim {embeddings.dim}, or name those "
            "of another encoder"
        )
    return replace(architecture, adapter=replace(adapter, encoder=embeddings.encoder.identity))


def set_trained(clip: Clip, config: TrainConfig, lora: Mapping[str, Tensor] | None = None) -> None:
    """Freeze what a run does not train, and add the low-rank updates that it trains instead.

    Args:
        clip: with its weights loaded; changed in place.
        config: of the stage.
        lora: the updates of a checkpoint, from `lora_state`; fresh ones without.

    Raises:
        ValueError: a tower has fewer blocks than are to be trained, or nothing is trained.
    """
    clip.distilling = config.text_side.distill
    if clip.distilling:
        clip.requires_grad_(False)
        assert clip.adapter is not None
        clip.adapter.requires_grad_(True)
        return
    _tune("image_side", clip.image, config.image_side)
    if clip.text is not None:
        _tune("text_side", clip.text, config.text_side)
    if lora:
        load_lora_state(clip, lora)
    if config.text_side.embed_dim:
        for part in clip.image.projection():
            part.requires_grad_(True)
    if not any(p.requires_grad for p in clip.parameters() if p.ndim):
        raise ValueError(
            "both towers are frozen, so that only the temperature could be trained: set "
            "image_side.tune or text_side.tune to projection, last, lora or all"
        )


def _tune(name: str, tower: ImageTower | TextTower, side: TowerTuning) -> None:
    if side.tune == "all":
        return
    tower.requires_grad_(False)
    if side.tune == "lora":
        add_lora(tower, tower.blocks, side.lora_rank, side.lora_alpha)
    elif side.tune == "last":
        if side.last_blocks > len(tower.blocks):
            raise ValueError(
                f"{name}.last_blocks is {side.last_blocks}, and the tower has {len(tower.blocks)} "
                "blocks"
            )
        tower.blocks[-side.last_blocks :].requires_grad_(True)
    if side.tune in ("last", "projection"):
        for part in tower.after_blocks() if side.tune == "last" else tower.projection():
            part.requires_grad_(True)


def trained_words(clip: Clip) -> str:
    """How many parameters are trained, of all."""
    sizes = [(p.numel() / 1e6, p.requires_grad) for p in clip.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    return f"trains {trained:.1f} M of {sum(size for size, _ in sizes):.1f} M parameters"
