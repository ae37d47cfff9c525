"""Decoders: JPEG, PNG and WebP files and crop windows to [B, S, S, 3] uint8."""

from pipeline.decoding.choice import DecoderKind, open_decoder
from pipeline.decoding.decoder import DaliGraph, Decoded, Decoder

__all__ = ["DaliGraph", "Decoded", "Decoder", "DecoderKind", "open_decoder"]
