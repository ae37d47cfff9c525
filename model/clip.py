"""CLIP: two towers into one space.

Shapes: B images, R captions of each (1 but for losses over several), T visible patches of all
images, N patches of a full image, p the patch side, U tokens of all captions, E length of a
sentence embedding, d length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.model.config import ClipConfig, clip_config
from tessera.model.embedding_text import TextAdapter
from tessera.model.execution import own_types
from tessera.model.text import TextTower
from tessera.model.vit import ImageTower


class Clip(nn.Module):
    """Image and text encoders over packed batches, and the learned temperature.

    The text side is a transformer over tokens, an adapter on sentence embeddings, or both.
    `model.execution.configure` sets the types; a caller's autocast has no effect.
    """

    text: TextTower | None
    """Transformer over tokens; None where an adapter replaces it."""
    adapter: TextAdapter | None
    """Text side on sentence embeddings; None in an ordinary CLIP."""
    distilling: bool
    """Whether `forward` pairs the adapter with the text tower, its teacher, in place of images."""
    logit_scale: nn.Parameter
    """[] float32, logarithm of the factor on cosine similarities."""
    logit_bias: nn.Parameter | None
    """[] float32, added to scaled similarities by sigmoid losses; None in models without one."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config.vision, config.embed_dim)
        self.text = TextTower(config.text, config.embed_dim) if config.has_text_tower else None
        adapter = config.adapter
        self.adapter = TextAdapter(adapter, config.embed_dim) if adapter else None
        self.distilling = False
        self.logit_scale = nn.Parameter(torch.tensor(float(config.init_logit_scale)))
        bias = config.init_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def encode_image(self, patches: Tensor, positions: Tensor, image_offsets: Tensor) -> Tensor:
        """Features of a batch of images, of each of which any patches may be missing.

        Off CUDA, lengths are checked; on CUDA that would stop the device, and offsets that
        break the rules below give wrong results or a device-side assertion.

        Args:
            patches: [T, 3*p*p], image after image, each patch (y, x, channel). uint8 values are
                normalised here with the config's mean and standard deviation; float values are
                taken as already normalised.
            positions: [T] int32, place of each patch in its image's grid, row-major, 0 .. N-1.
            image_offsets: [B+1] int32, image i owns rows image_offsets[i] up to image_offsets[i+1].

        Returns:
            [B, d] features before unit normalisation.

        Raises:
            ValueError: The tensors' shapes or types do not fit each other or the model.
        """
        _check_matrix("patches", patches, self.config.vision.patch_dim)
        _check_integers("positions", positions, patches.shape[0])
        _check_offsets("image_offsets", image_offsets)
        with own_types(patches.device):
            return self.image(patches, positions, image_offsets)

    def encode_text(self, tokens: Tensor, text_offsets: Tensor) -> Tensor:
        """Features of a batch of captions.

        Checks lengths as `encode_image` does. A causal tower is read at each caption's last
        token. A bidirectional one (`TextConfig.causal` false, as CLIPA has it) is read where
        `TextConfig.pool` says, and in open_clip it also sees the padding behind the caption: to
        get open_clip's feature, make the padding part of the caption, up to the context length.

        Args:
            tokens: [U] int32, caption after caption, start and end tokens included. A causal
                tower needs no padding.
            text_offsets: [B+1] int32, as `image_offsets`; no caption empty or longer than the
                context length.

        Returns:
            [B, d] features before unit normalisation.

        Raises:
            ValueError: The tensors' shapes or types do not fit each other or the model, or the
                model has no text tower.
        """
        if self.text is None:
            raise ValueError(f"{self._reads_embeddings()}: call encode_embeddings")
        _check_integers("tokens", tokens, None)
        _check_offsets("text_offsets", text_offsets)
        with own_types(tokens.device):
            return self.text(tokens, text_offsets)

    def encode_embeddings(self, embeddings: Tensor | None) -> Tensor:
        """Features of captions that a language model has embedded.

        Args:
            embeddings: [B, E] of any float type; their length has no effect.

        Returns:
            [B, d] features before unit normalisation.

        Raises:
            ValueError: There are none, they are of another model's shape, or the model has no
                adapter.
        """
        if self.adapter is None:
            raise ValueError(f"{self.config.name!r} has no adapter for embeddings: encode_text")
        if embeddings is None:
            raise ValueError(f"{self._reads_embeddings()}, and the batch has none")
        _check_matrix("embeddings", embeddings, self.adapter.config.embedding_dim)
        with own_types(embeddings.device):
            return self.adapter(embeddings)

    @property
    def towers(self) -> list[ImageTower | TextTower]:
        """The transformers that the model has."""
        return [self.image] if self.text is None else [self.image, self.text]

    def forward(
        self,
        patches: Tensor,
        positions: Tensor,
        image_offsets: Tensor,
        tokens: Tensor,
        text_offsets: Tensor,
        embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes pairs into what a loss takes; arguments as for the encoders.

        A model with both text sides gives two features of each caption, the adapter's and the text
        tower's behind it, as if they were two texts of the image.

        Returns:
            Image features [B, d] and text features [B*R, d], float32 of unit length, and the
            logit scale [], no longer a logarithm. While `distilling`, the text tower's features
            stand in the place of the images', without gradients.
        """
        if self.distilling:
            with torch.no_grad():
                anchors = self.encode_text(tokens, text_offsets)
            texts = self.encode_embeddings(embeddings)
        else:
            anchors = self.encode_image(patches, positions, image_offsets)
            texts = self._encode_captions(tokens, text_offsets, embeddings)
        return (
            F.normalize(anchors.float(), dim=-1),
            F.normalize(texts.float(), dim=-1),
            self.logit_scale.exp(),
        )

    def _encode_captions(
        self, tokens: Tensor, text_offsets: Tensor, embeddings: Tensor | None
    ) -> Tensor:
        """[B*R, d] by the text side that the model has, or by both."""
        if self.adapter is None:
            return self.encode_text(tokens, text_offsets)
        adapted = self.encode_embeddings(embeddings)
        if self.text is None:
            return adapted
        return torch.stack([adapted, self.encode_text(tokens, text_offsets)], 1).flatten(0, 1)

    def _reads_embeddings(self) -> str:
        adapter = self.config.adapter
        made_by = f" of {adapter.encoder}" if adapter and adapter.encoder else ""
        return f"{self.config.name!r} reads sentence embeddings{made_by}"


def build_clip(name: str | ClipConfig) -> Clip:
    """Builds a model with fresh weights.

    Args:
        name: open_clip's name of a model, one of our own (`tessera-demo`, `tessera-xs-16`), or
            a config. On `torch.device("meta")` nothing is allocated.

    Raises:
        ValueError: Unknown name, or a model that needs something this package lacks.
    """
    return Clip(clip_config(name) if isinstance(name, str) else name)


def _check_matrix(name: str, value: Tensor, columns: int) -> None:
    if value.ndim != 2 or value.shape[1] != columns:
        raise ValueError(f"{name} must be [T, {columns}] for this model, got {list(value.shape)}")
    if value.dtype != torch.uint8 and not value.is_floating_point():
        raise ValueError(f"{name} must be uint8 or float, got {value.dtype}")


def _check_integers(name: str, value: Tensor, length: int | None) -> None:
    if value.ndim != 1 or (length is not None and value.shape[0] != length):
        wanted = "one-dimensional" if length is None else f"[{length}]"
        raise ValueError(f"{name} must be {wanted}, got {list(value.shape)}")
    if value.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32, got {value.dtype}")


def _check_offsets(name: str, value: Tensor) -> None:
    if value.ndim != 1 or value.shape[0] < 2 or value.dtype != torch.int32:
        raise ValueError(
            f"{name} must be [B+1] int32 with B at least 1, got {list(value.shape)} {value.dtype}"
        )
