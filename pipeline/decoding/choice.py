"""Which decoder a run uses."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from tessera.pipeline.decoding import DecoderKind
from tessera.pipeline.decoding.decoder import DaliGraph, Decoder
from tessera.pipeline.native import NotBuiltError

logger = logging.getLogger(__name__)

WITHOUT_TURBO = "dali-cpu"
"""Name of the decoder that `auto` falls back to where turbo is not available."""


def open_decoder(
    kind: DecoderKind,
    *,
    image_size: int,
    batch_size: int,
    num_threads: int,
    device: torch.device | str = "cpu",
    graph: DaliGraph = "window",
) -> Decoder:
    """Open a decoder.

    Args:
        kind: `turbo` and `pil` decode on the CPU only.
        image_size: S, in pixels.
        batch_size: most images in one call.
        num_threads: CPU threads.
        device: where the images are wanted.
        graph: how DALI is asked for a window.

    Raises:
        ValueError: the kind cannot serve this device, or is not available on this machine.
    """
    device = torch.device(device)
    if kind == "auto":
        if device.type == "cuda":
            kind = "dali"
        else:
            try:
                return _open_on_cpu("turbo", image_size, num_threads)
            except ValueError as error:
                logger.warning("%s; DALI decodes instead, at about half the speed", error)
                kind = "dali"
    if kind == "dali":
        # DALI takes a second to import, and whoever decodes without it needs none of it.
        from tessera.pipeline.decoding.dali_graph import DaliDecoder

        return DaliDecoder(
            image_size=image_size,
            batch_size=batch_size,
            num_threads=num_threads,
            device=device,
            graph=graph,
            others=_open_any_on_cpu(image_size, num_threads),
        )
    if device.type != "cpu":
        raise ValueError(f"decoder {kind!r} works on the CPU, not on {device}: take 'dali'")
    return _open_on_cpu(kind, image_size, num_threads)


def _open_on_cpu(kind: Literal["turbo", "pil"], image_size: int, num_threads: int) -> Decoder:
    if kind == "pil":
        from tessera.pipeline.decoding.pil import PilDecoder

        return PilDecoder(image_size, num_threads)
    from tessera.pipeline.decoding.turbo import TurboDecoder

    try:
        return TurboDecoder(image_size, num_threads)
    except NotBuiltError as error:
        raise ValueError(f"decoder 'turbo' is not available here: {error}") from error


def _open_any_on_cpu(image_size: int, num_threads: int) -> Decoder:
    """What takes the files that DALI does not get; Pillow reads them all, at half turbo's speed."""
    try:
        return _open_on_cpu("turbo", image_size, num_threads)
    except ValueError:
        return _open_on_cpu("pil", image_size, num_threads)
