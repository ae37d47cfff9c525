"""What of a model is trained: its text side and its image side, as the configuration has them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tessera.model import Clip
from tessera.model.config import ClipConfig
from tessera.model.lora import add_lora
from tessera.pipeline import Loader
from tessera.training.config import TrainConfig


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


def set_trained(clip: Clip, config: TrainConfig, lora: dict[str, Tensor] | None = None) -> None:
    """Freeze what a run does not train, and add the low-rank updates that it trains instead.

    Args:
        clip: with its weights loaded; changed in place.
        config: of the stage.
        lora: the updates of a checkpoint, from `lora_state`; fresh ones without.
    """
    side = config.image_side
    clip.distilling = config.text_side.distill
    if clip.distilling:
        clip.requires_grad_(False)
        assert clip.adapter is not None
        clip.adapter.requires_grad_(True)
    elif side.tune == "frozen":
        clip.image.requires_grad_(False)
    elif side.tune == "lora":
        add_lora(clip.image, side.lora_rank, side.lora_alpha)
        if lora:
            clip.image.load_state_dict(lora, strict=False)
    if not clip.distilling and config.text_side.embed_dim:
        clip.image.proj.requires_grad_(True)


def trained_words(clip: Clip) -> str:
    """How many parameters are trained, of all."""
    sizes = [(p.numel() / 1e6, p.requires_grad) for p in clip.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    return f"trains {trained:.1f} M of {sum(size for size, _ in sizes):.1f} M parameters"
