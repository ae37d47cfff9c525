"""DALI's webdataset reader with the graph that its documentation shows; a baseline only."""

from __future__ import annotations

from typing import Any

from pipeline.patches import CLIP_MEAN, CLIP_STD
from tools.benchmarks.side import Setting, UnavailableError, Work

_DEPTH = 2
_SHUFFLED = 1000


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
