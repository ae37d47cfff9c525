"""Decoders: JPEG, PNG and WebP files and crop windows to [B, S, S, 3] uint8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tessera.pipeline.decoding.choice import open_decoder
    from tessera.pipeline.decoding.decoder import DaliGraph, Decoded, Decoder

__all__ = ["DaliGraph", "Decoded", "Decoder", "DecoderKind", "open_decoder"]

DecoderKind = Literal["auto", "turbo", "dali", "pil"]
"""`auto` takes the fastest of this machine: DALI for a GPU, turbo, or else DALI, for a CPU."""


def __getattr__(name: str) -> Any:
    """Import on first use: a program that only looks at files needs no torch."""
    from importlib import import_module

    homes = {"open_decoder": "choice"}
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{homes.get(name, 'decoder')}"), name)
