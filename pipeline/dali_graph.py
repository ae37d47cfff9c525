"""Decode, crop and resize with NVIDIA DALI. The only module that imports it.

Only the crop window is decoded. The resize is linear with antialiasing: DALI's cubic one costs
more and its result is no nearer to PIL's. The graph is fed and run by hand, one call at a time:
what runs ahead of what is decided by the loader, for all stages alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from pipeline.decode import Decoded

_REASON_LENGTH = 200


class DaliDecoder:
    """DALI's CPU backend behind the decoder interface."""

    def __init__(self, image_size: int, batch_size: int, num_threads: int) -> None:
        """Build the graph.

        Args:
            image_size: S, in pixels.
            batch_size: most images in one call.
            num_threads: CPU threads.
        """
        self._image_size = image_size
        self._batch_size = batch_size
        self._num_threads = num_threads
        self._graph = self._build(batch_size, num_threads)

    def decode(self, encoded: Sequence[bytes], windows: NDArray[np.int32]) -> Decoded:
        """Decode a batch; if that fails, picture by picture to learn which ones are bad."""
        if not encoded:
            return Decoded(images=torch.from_numpy(self._blank(0)), failures={})
        try:
            return Decoded(images=_run(self._graph, encoded, windows), failures={})
        except RuntimeError:
            # One bad picture ends a DALI graph for good; a new one takes 4 ms to build.
            self._graph = self._build(self._batch_size, self._num_threads)
            return self._decode_singly(encoded, windows)

    def _decode_singly(self, encoded: Sequence[bytes], windows: NDArray[np.int32]) -> Decoded:
        images = torch.from_numpy(self._blank(len(encoded)))
        failures: dict[int, str] = {}
        graph = self._build(1, 1)
        for place, data in enumerate(encoded):
            try:
                images[place] = _run(graph, [data], windows[place : place + 1])[0]
            except RuntimeError as error:
                failures[place] = _reason(error)
                graph = self._build(1, 1)
        return Decoded(images=images, failures=failures)

    def _build(self, batch_size: int, num_threads: int) -> Pipeline:
        graph = Pipeline(
            batch_size=batch_size,
            num_threads=num_threads,
            device_id=None,
            prefetch_queue_depth=1,
            exec_pipelined=False,
            exec_async=False,
        )
        with graph:
            encoded = fn.external_source(name="encoded", dtype=types.DALIDataType.UINT8, ndim=1)
            start = fn.external_source(name="start", dtype=types.DALIDataType.INT32, ndim=1)
            shape = fn.external_source(name="shape", dtype=types.DALIDataType.INT32, ndim=1)
            images = fn.decoders.image_slice(
                encoded,
                start=start,
                shape=shape,
                axis_names="HW",
                output_type=types.DALIImageType.RGB,
            )
            images = fn.resize(
                images,
                size=[self._image_size, self._image_size],
                interp_type=types.DALIInterpType.INTERP_LINEAR,
                antialias=True,
            )
            graph.set_outputs(images)
        graph.build()
        return graph

    def _blank(self, count: int) -> NDArray[np.uint8]:
        return np.zeros((count, self._image_size, self._image_size, 3), dtype=np.uint8)


def _run(graph: Pipeline, encoded: Sequence[bytes], windows: NDArray[np.int32]) -> torch.Tensor:
    if not all(encoded):
        raise RuntimeError("the file is empty")
    graph.feed_input("encoded", [np.frombuffer(data, dtype=np.uint8) for data in encoded])
    graph.feed_input("start", np.ascontiguousarray(windows[:, :2]))
    graph.feed_input("shape", np.ascontiguousarray(windows[:, 2:]))
    (images,) = graph.run()
    # Copied, because DALI writes the next batch into the same buffer.
    return torch.from_numpy(np.array(images.as_tensor()))


def _reason(error: RuntimeError) -> str:
    """DALI's message without the graph's traceback, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line and "pipeline" not in line.lower()]
    return (telling or lines or ["unknown error"])[-1][:_REASON_LENGTH]
