"""Decoders: JPEG, PNG and WebP files and crop windows to [B, S, S, 3] uint8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tessera.lazy import names_from

if TYPE_CHECKING:
    from tessera.pipeline.decoding.choice import open_decoder
    from tessera.pipeline.decoding.decoder import DaliGraph, Decoded, Decoder

__all__ = ["DaliGraph", "Decoded", "Decoder", "DecoderKind", "open_decoder"]

DecoderKind = Literal["auto", "turbo", "dali", "pil"]
"""`auto` takes the fastest of this machine: DALI for a GPU, turbo, or else DALI, for a CPU."""

_HOMES = {
    "DaliGraph": "decoder",
    "Decoded": "decoder",
    "Decoder": "decoder",
    "open_decoder": "choice",
}

__getattr__ = names_from(__name__, _HOMES)
