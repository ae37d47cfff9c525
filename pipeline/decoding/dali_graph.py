"""Decode, crop and resize with NVIDIA DALI. The only module that imports it.

One graph for the CPU and for CUDA, fed and run by hand, one call at a time: the loader decides what
runs ahead of what. The resize is cubic with antialiasing: on a CPU that costs half as much again as
the linear one, and comes within 56 dB of Pillow's where the linear one stays at 41.

DALI gets plain JPEG files only (`pipeline.decoding.jpeg_walk`): others it reads otherwise than the
index did, or they end the process. A CPU decoder takes those, and the whole batch if the graph
fails; its pictures are uploaded to where DALI's are.

DALI is pinned below 2.2 (docs/gpu.md has what was tried): from there on its decoders are those of
nvImageCodec, whose CPU part ends the process on a picture that it cannot decode. The decoders of
2.1 know no EXIF orientation, so windows and pictures are turned here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from tessera.pipeline.decoding.decoder import DaliGraph, Decoded, Decoder
from tessera.pipeline.decoding.jpeg_walk import JpegLayoutError, walk_jpeg
from tessera.pipeline.decoding.upright import stored_window, turn_upright
from tessera.pipeline.device_copy import upload

logger = logging.getLogger(__name__)

_REASON_LENGTH = 200


class _Part(NamedTuple):
    """What DALI gets of a file."""

    file: NDArray[np.uint8]
    """The file up to the end of its picture."""
    window: list[int]
    """(y, x, height, width) in the picture as stored: DALI knows nothing of orientations."""
    orientation: int
    """EXIF orientation, 1 to 8."""


class DaliDecoder:
    """DALI behind the decoder interface, on a CPU or on a GPU."""

    def __init__(
        self,
        *,
        image_size: int,
        batch_size: int,
        num_threads: int,
        device: torch.device,
        graph: DaliGraph,
        others: Decoder,
    ) -> None:
        """Build the graph.

        Args:
            image_size: S, in pixels.
            batch_size: most images in one call.
            num_threads: CPU threads; on CUDA they prepare what the GPU decodes.
            device: where the images are wanted. On CUDA they are ready in the order of the stream
                that is current when `decode` is called, and never touch the host.
            graph: how DALI is asked for a window.
            others: decodes on the CPU what DALI does not get.
        """
        self._image_size = image_size
        self._batch_size = batch_size
        self._num_threads = num_threads
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        self._others = others
        self._kind: DaliGraph = graph
        self.name = f"dali-{device}"
        self._graph = self._build()
        self._finished = torch.cuda.Event(blocking=True) if device.type == "cuda" else None
        self._num_failed = 0
        self._failed_last = False

    def decode(
        self,
        encoded: Sequence[bytes],
        windows: NDArray[np.int32],
        plain: NDArray[np.int8] | None = None,
    ) -> Decoded:
        """Decode a batch; see `Decoder.decode`."""
        known = np.zeros(len(encoded), np.bool_) if plain is None else plain == 1
        parts = {
            place: part
            for place, data in enumerate(encoded)
            if (part := _plain_part(data, windows[place], bool(known[place]))) is not None
        }
        images, fallback = self._try_graph(list(parts.values()))
        places = list(parts) if images is not None else []
        if images is not None and len(places) == len(encoded):
            return Decoded(images=images, failures={})
        rest = np.setdiff1d(np.arange(len(encoded)), places)
        # On CUDA the GPU decodes its part meanwhile.
        decoded = self._others.decode([encoded[place] for place in rest], windows[rest])
        failures = {int(rest[at]): reason for at, reason in decoded.failures.items()}
        uploaded = upload(decoded.images, self._device)
        if images is None:
            return Decoded(images=uploaded, failures=failures, fallback=fallback)
        merged = images.new_empty((len(encoded), *images.shape[1:]))
        merged.index_copy_(0, upload(torch.tensor(places), self._device), images)
        merged.index_copy_(0, upload(torch.from_numpy(rest), self._device), uploaded)
        return Decoded(images=merged, failures=failures)

    def _try_graph(self, parts: list[_Part]) -> tuple[torch.Tensor | None, str]:
        """[P, S, S, 3] uint8 upright images, or None and why the graph failed, if it did."""
        if not parts:
            return None, ""
        try:
            images = self._run(parts)
        except RuntimeError as error:
            reason = f"DALI failed: {_reason(error)}"
            self._note_failure(len(parts), reason)
            if self._finished is not None:  # what the batch still has under way on the device
                torch.cuda.synchronize(self._device)
            return None, reason
        self._failed_last = False
        orientations = np.array([part.orientation for part in parts])
        for orientation in np.unique(orientations[orientations > 1]).tolist():
            those = torch.from_numpy(np.flatnonzero(orientations == orientation))
            those = upload(those, self._device)
            images.index_copy_(0, those, turn_upright(images[those], orientation))
        return images, ""

    def _note_failure(self, count: int, reason: str) -> None:
        self._num_failed += 1
        if self._num_failed & (self._num_failed - 1) == 0:  # the 1st, 2nd, 4th, 8th, ... time
            logger.warning(
                "%s on a batch of %d pictures, which %s decoded; batches that failed so far: %d",
                reason, count, self._others.name, self._num_failed,
            )  # fmt: skip
        # A graph serves the next batch as before after a picture that it cannot decode. One that
        # fails twice in a row may be broken itself.
        if self._failed_last:
            self._graph = self._build()
        self._failed_last = not self._failed_last

    def _run(self, parts: list[_Part]) -> torch.Tensor:
        self._wait_for_last()
        windows = np.array([part.window for part in parts], dtype=np.int32)
        graph = self._graph
        graph.feed_input("encoded", [part.file for part in parts])
        graph.feed_input("start", np.ascontiguousarray(windows[:, :2]))
        graph.feed_input("shape", np.ascontiguousarray(windows[:, 2:]))
        if self._finished is None:
            (images,) = graph.run()
            return torch.from_dlpack(images.as_tensor())
        stream = torch.cuda.current_stream(self._device)
        (images,) = graph.run(cuda_stream=stream.cuda_stream)
        # The dynamic executor gives each batch memory of its own, which lives as long as the
        # tensor; torch tells DALI its stream, and DALI makes that stream wait for the pixels.
        tensor = torch.from_dlpack(images.as_tensor())
        self._finished.record(stream)
        return tensor

    def _wait_for_last(self) -> None:
        """Wait, on the host, until the device has finished the batch before.

        nvJPEG's batched decode on the JPEG engine of Hopper GPUs starts without waiting for earlier
        work of the stream it is given (pytorch/vision#9606, meta-pytorch/torchcodec#1634). DALI
        reuses memory in the order of that stream, so the decode of a batch could write over
        pictures that the resize of the batch before still reads. The event stands behind that
        resize. By the time of the next call it has mostly happened: the packing thread has
        queued the batch's patches, mask and copies in between.
        """
        if self._finished is not None:
            self._finished.synchronize()

    def _build(self) -> Pipeline:
        on_gpu = self._device.type == "cuda"
        graph = Pipeline(
            batch_size=self._batch_size,
            num_threads=self._num_threads,
            device_id=self._device.index if on_gpu else None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with graph:
            encoded = fn.external_source(name="encoded", dtype=types.DALIDataType.UINT8, ndim=1)
            start = fn.external_source(name="start", dtype=types.DALIDataType.INT32, ndim=1)
            shape = fn.external_source(name="shape", dtype=types.DALIDataType.INT32, ndim=1)
            window = {"start": start, "shape": shape, "axis_names": "HW"}
            how = {
                "device": "mixed" if on_gpu else "cpu",
                "output_type": types.DALIImageType.RGB,
                # Without it a GPU repeats colours where a CPU interpolates them.
                "jpeg_fancy_upsampling": "repeat" not in self._kind,
            }
            if self._kind.endswith("-cuda"):  # no share of the work for the JPEG engine
                how["hw_decoder_load"] = 0.0
            if self._kind.startswith("window"):
                images = fn.decoders.image_slice(encoded, **window, **how)
            else:
                images = fn.slice(fn.decoders.image(encoded, **how), **window)
            images = fn.resize(
                images,
                size=[self._image_size, self._image_size],
                interp_type=types.DALIInterpType.INTERP_CUBIC,
                antialias=True,
            )
            graph.set_outputs(images)
        graph.build()
        return graph


def _plain_part(data: bytes, window: NDArray[np.int32], known: bool) -> _Part | None:
    """What DALI gets of a file; None if another decoder must see to it."""
    try:
        layout = walk_jpeg(data, header_only=known)
    except JpegLayoutError:
        return None
    part = stored_window(window, layout.orientation, (layout.height, layout.width))
    y, x, height, width = part
    inside = min(y, x, height - 1, width - 1) >= 0
    inside = inside and y + height <= layout.height and x + width <= layout.width
    if not (layout.is_plain and inside):
        return None
    return _Part(np.frombuffer(data, np.uint8, layout.end), part, layout.orientation)


def _reason(error: RuntimeError) -> str:
    """DALI's message without the graph's traceback, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line and "pipeline" not in line.lower()]
    return (telling or lines or ["unknown error"])[-1][:_REASON_LENGTH]
