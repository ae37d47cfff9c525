"""Sizes and options of the towers: open_clip's by its names, and a few small ones of our own."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, Literal, get_args

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
"""GELU, its tanh approximation, or x*sigmoid(1.702x), with which OpenAI's weights were trained."""
ImagePool = Literal["tok", "avg", "map"]
"""What becomes an image's feature: the class token, the mean of the patches, or what a learned
query attends to (SigLIP's pooling; Zhai et al. 2022, "Scaling Vision Transformers")."""
TextPool = Literal["argmax", "eos", "last", "first"]
"""Which token becomes a caption's feature: the largest id, the first `eos_id`, the last, the
first."""
Positions = Literal["learnable", "sin_cos_2d"]
"""A learned table, or the fixed one of sines and cosines (He et al. 2022, appendix A.1)."""

CLIP_PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training pixels, red, green, blue, for values in 0 .. 1."""
CLIP_PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the same."""


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _require_divisor(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value < 1 or divisor < 1 or value % divisor:
        raise ValueError(
            f"{divisor_name} {divisor} must divide {name} {value}, and both be positive"
        )


def _require_member(name: str, value: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """A plain vision transformer."""

    image_size: int = 224
    """Side of the square input, pixels."""
    patch_size: int = 16
    """Side of a square patch, pixels; must divide `image_size`."""
    width: int = 768
    """Channels of the residual stream."""
    layers: int = 12
    """Number of transformer blocks."""
    head_width: int = 64
    """Channels of one attention head; must divide `width`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`; the product is rounded down."""
    activation: Activation = "gelu"
    """Activation of the MLPs."""
    ln_eps: float = 1e-5
    """Added to the variance in every layer norm."""
    layer_scale: float | None = None
    """Start of the learned factor on each block's updates; None for no such factor."""
    positions: Positions = "learnable"
    """Kind of position table."""
    ln_pre: bool = True
    """Whether a layer norm stands between the embedding and the first block."""
    pool: ImagePool = "tok"
    """Which tokens become the feature."""
    class_token: bool = True
    """Whether a learned token stands before the patches."""
    patch_bias: bool = False
    """Whether the patch projection has a bias."""
    projection: bool = True
    """Whether a matrix takes `width` to `embed_dim`; without one both must be equal."""
    timm_model: str = ""
    """timm's name of the tower where open_clip has it from there; changes names alone."""
    pool_before_ln: bool = False
    """Whether the last layer norm follows pooling; matters for `pool="avg"` alone."""
    pixel_mean: tuple[float, float, float] = CLIP_PIXEL_MEAN
    """Mean of red, green and blue, of 1, that uint8 patches are normalised with."""
    pixel_std: tuple[float, float, float] = CLIP_PIXEL_STD
    """Standard deviation of red, green and blue, of 1, for the same."""

    def __post_init__(self) -> None:
        _require_divisor("image_size", self.image_size, "patch_size", self.patch_size)
        _require_divisor("width", self.width, "head_width", self.head_width)
        _require_positive("layers", self.layers)
        _require_member("activation", self.activation, Activation)
        _require_member("pool", self.pool, ImagePool)
        _require_member("positions", self.positions, Positions)
        if self.pool == "tok" and not self.class_token:
            raise ValueError("pool 'tok' needs class_token=True: take avg or map")
        if self.positions == "sin_cos_2d":
            _require_divisor("width", self.width, "2*2 of the sine-cosine table", 4)

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.width // self.head_width

    @property
    def mlp_width(self) -> int:
        """Hidden channels of a block's MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def grid_size(self) -> int:
        """Patches along a side of a full image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches N of a full image."""
        return self.grid_size**2

    @property
    def num_positions(self) -> int:
        """Rows of the position table: patches, and the class token where there is one."""
        return self.num_patches + self.class_token

    @property
    def patch_dim(self) -> int:
        """Values in one patch, 3*p*p."""
        return 3 * self.patch_size**2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """A text transformer whose feature is read at one token."""

    context_length: int = 77
    """Most tokens of a caption, start and end tokens included."""
    vocab_size: int = 49408
    """Number of token ids (CLIP's byte-pair encoding has 49408)."""
    width: int = 512
    """Channels of the residual stream."""
    layers: int = 12
    """Number of transformer blocks."""
    heads: int = 8
    """Attention heads of a block; must divide `width`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`; the product is rounded down."""
    activation: Activation = "gelu"
    """Activation of the MLPs."""
    ln_eps: float = 1e-5
    """Added to the variance in every layer norm."""
    layer_scale: float | None = None
    """Start of the learned factor on each block's updates; None for no such factor."""
    causal: bool = True
    """Whether a token sees only itself and those before it."""
    pool: TextPool = "argmax"
    """Which token becomes the feature."""
    eos_id: int = 2
    """Id of the end token, for `pool="eos"` alone."""
    projection: bool = True
    """Whether a matrix takes `width` to `embed_dim`; without one both must be equal."""
    projection_bias: bool = False
    """Whether that projection has a bias."""
    tokenizer: str | None = None
    """Hugging Face name of the tokenizer that the ids come from; None for CLIP's byte-pair
    encoding."""
    tokenizer_options: tuple[tuple[str, Any], ...] = ()
    """Names and values of open_clip's `tokenizer_kwargs`."""

    def __post_init__(self) -> None:
        _require_divisor("width", self.width, "heads", self.heads)
        _require_positive("layers", self.layers)
        _require_positive("context_length", self.context_length)
        _require_positive("vocab_size", self.vocab_size)
        _require_member("activation", self.activation, Activation)
        _require_member("pool", self.pool, TextPool)
        if self.causal and self.pool == "first":
            raise ValueError(
                "pool 'first' needs causal=False: a causal tower's first token sees only itself"
            )
        if self.projection_bias and not self.projection:
            raise ValueError("projection_bias needs projection=True")

    @property
    def mlp_width(self) -> int:
        """Hidden channels of a block's MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def uses_clip_bpe(self) -> bool:
        """Whether token ids are those of CLIP's byte-pair encoding, as the index stores them."""
        return self.tokenizer is None and not self.tokenizer_options


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """An adapter on the sentence embeddings of a frozen language model (LLM2CLIP, stage 2)."""

    embedding_dim: int
    """Length E of an embedding, and channels of the adapter."""
    encoder: str = ""
    """What made the embeddings, `sha256:HASH (how)`; empty before data are at hand."""
    layers: int = 4
    """Residual blocks."""
    mlp_ratio: float = 2.0
    """Hidden width of a block over `embedding_dim`; the product is rounded down."""
    ln_eps: float = 1e-5
    """Added to the variance in every layer norm."""
    replaces_text: bool = True
    """Whether the model has no text transformer beside the adapter."""

    def __post_init__(self) -> None:
        _require_positive("embedding_dim", self.embedding_dim)
        if self.layers < 0:
            raise ValueError(f"layers cannot be negative, got {self.layers}")

    @property
    def hidden_width(self) -> int:
        """Hidden channels of a block."""
        return int(self.embedding_dim * self.mlp_ratio)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Both towers and what joins them."""

    name: str
    """Name for logs and checkpoints; open_clip's where open_clip has the model."""
    embed_dim: int
    """Length d of a feature."""
    vision: VisionConfig
    """Image tower."""
    text: TextConfig
    """Text tower; with an adapter in its place, how long captions are that the index serves."""
    adapter: AdapterConfig | None = None
    """Text side on sentence embeddings; None for the text tower alone."""
    init_logit_scale: float = math.log(1 / 0.07)
    """Start of the learned log temperature, natural logarithm."""
    init_logit_bias: float | None = None
    """Start of the learned bias on logits, which sigmoid losses use; None for no bias."""
    custom_text: bool = False
    """Whether open_clip builds this model as `CustomTextCLIP`, whose weights of the text tower
    are named `text.*`; changes names alone."""

    def __post_init__(self) -> None:
        _require_positive("embed_dim", self.embed_dim)
        if not self.vision.projection and self.vision.width != self.embed_dim:
            raise ValueError(
                f"without a projection the image width {self.vision.width} must equal embed_dim "
                f"{self.embed_dim}"
            )
        if not self.has_text_tower:
            return
        if not self.text.projection and self.text.width != self.embed_dim:
            raise ValueError(
                f"without a projection the text width {self.text.width} must equal embed_dim "
                f"{self.embed_dim}"
            )

    @property
    def has_text_tower(self) -> bool:
        """Whether the model reads token ids."""
        return self.adapter is None or not self.adapter.replaces_text


_OWN_CONFIGS = {
    config.name: config
    for config in (
        ClipConfig(
            name="tessera-demo",
            embed_dim=128,
            vision=VisionConfig(image_size=64, patch_size=8, width=128, layers=4),
            text=TextConfig(context_length=32, width=128, layers=3, heads=2),
        ),
        ClipConfig(
            name="tessera-xs-16",
            embed_dim=192,
            vision=VisionConfig(image_size=224, patch_size=16, width=192, layers=6),
            text=TextConfig(context_length=40, width=192, layers=4, heads=3),
        ),
    )
}


def clip_config(name: str) -> ClipConfig:
    """Looks a model up by name, among our own and then open_clip's.

    Raises:
        ValueError: Nobody knows the name (the message has the nearest ones), or the model
            needs something that this package lacks (the message says what).
    """
    if name in _OWN_CONFIGS:
        return _OWN_CONFIGS[name]
    # Here and not above: that takes seconds, and our own models need none of it.
    import open_clip

    from tessera.model.open_clip_config import from_open_clip, pixel_statistics

    known = open_clip.list_models()
    # Asked for first: get_model_config would go to the network for names like hf-hub:...
    if name not in known:
        near = difflib.get_close_matches(name, [*_OWN_CONFIGS, *known], n=5, cutoff=0.4)
        hint = f"; the nearest names are {', '.join(near)}" if near else ""
        raise ValueError(f"unknown model {name!r}{hint}")
    raw = open_clip.get_model_config(name)
    assert raw is not None
    return from_open_clip(name, raw, pixel_statistics(name))
