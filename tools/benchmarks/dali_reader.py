"""DALI as others use it: its webdataset reader, and its decoder alone as the limit of a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Literal

import numpy as np
import torch

from tessera.pipeline.patches import CLIP_MEAN, CLIP_STD
from tessera.tools.benchmarks.limits import jpeg_files
from tessera.tools.benchmarks.side import Setting, UnavailableError, Work

_DEPTH = 2
_SHUFFLED = 1000


class NvjpegSide:
    """Every pixel of every file by nvJPEG, hardware engines included, and nothing else."""

    ahead = _DEPTH + 1

    def __init__(self, setting: Setting) -> None:
        """Read the files and build the graph.

        Raises:
            UnavailableError: DALI is not installed, there is no GPU, or no JPEG.
        """
        if not torch.cuda.is_available():
            raise UnavailableError("torch sees no GPU")
        files = jpeg_files(setting)
        self._graph = full_decode_graph(files, setting.batch_size, setting.num_workers, "mixed")
        self._batch_size = setting.batch_size

    def run(self, num_batches: int) -> Work:
        """Decode files, beginning again at the end."""
        for _ in range(num_batches):
            self._graph.run()
        torch.cuda.synchronize()
        return Work(num_images=num_batches * self._batch_size)

    def close(self) -> None:
        """Let the graph go."""
        del self._graph


def full_decode_graph(
    files: Sequence[bytes], batch_size: int, num_threads: int, device: Literal["cpu", "mixed"]
) -> Any:
    """A DALI graph without an end whose output is a batch of whole decoded pictures.

    Args:
        files: JPEGs, gone through again and again.
        batch_size: pictures of a batch.
        num_threads: of the part that runs on the CPU.
        device: `mixed` decodes on the GPU.

    Raises:
        UnavailableError: DALI is not installed.
    """
    try:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline
    except ImportError as error:
        raise UnavailableError(f"DALI is not installed ({error})") from None

    def batches() -> Iterator[list[np.ndarray]]:
        endless = cycle([np.frombuffer(data, dtype=np.uint8) for data in files])
        while True:
            yield list(islice(endless, batch_size))

    graph = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=None if device == "cpu" else torch.cuda.current_device(),
        prefetch_queue_depth=_DEPTH,
    )
    with graph:
        encoded: Any = fn.external_source(source=batches(), dtype=types.DALIDataType.UINT8)
        graph.set_outputs(
            fn.decoders.image(encoded, device=device, output_type=types.DALIImageType.RGB)
        )
    graph.build()
    return graph


class DaliReaderSide:
    """Read, crop-decode, resize, normalise to float, all by DALI; texts stay bytes."""

    ahead = _DEPTH + 1

    def __init__(self, setting: Setting) -> None:
        """Build the graph.

        Raises:
            UnavailableError: DALI is not installed.
        """
        try:
            from nvidia.dali import fn, types
            from nvidia.dali.pipeline import Pipeline
        except ImportError as error:
            raise UnavailableError(f"DALI is not installed ({error})") from None
        self._batch_size = setting.batch_size
        graph = Pipeline(
            batch_size=setting.batch_size,
            num_threads=setting.num_workers,
            device_id=None,
            prefetch_queue_depth=_DEPTH,
        )
        with graph:
            sources: Any = fn.readers.webdataset(
                paths=list(setting.shards),
                ext=["jpg", "txt"],
                missing_component_behavior="skip",
                random_shuffle=True,
                initial_fill=_SHUFFLED,
            )
            encoded, texts = sources
            images: Any = fn.decoders.image_random_crop(
                encoded,
                random_area=list(setting.crop.scale),
                random_aspect_ratio=list(setting.crop.ratio),
                output_type=types.DALIImageType.RGB,
            )
            images = fn.resize(
                images,
                size=[setting.image_size, setting.image_size],
                interp_type=types.DALIInterpType.INTERP_CUBIC,
                antialias=True,
            )
            images = fn.crop_mirror_normalize(
                images,
                dtype=types.DALIDataType.FLOAT,
                mean=[255 * value for value in CLIP_MEAN],
                std=[255 * value for value in CLIP_STD],
            )
            graph.set_outputs(images, texts)
        graph.build()
        self._graph = graph

    def run(self, num_batches: int) -> Work:
        """Take batches."""
        for _ in range(num_batches):
            self._graph.run()
        return Work(num_images=num_batches * self._batch_size)

    def close(self) -> None:
        """Let the graph go."""
        del self._graph
