"""Decode with Pillow: every format that the index lets in, and the reference for the others."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tessera.pipeline.decoding.decoder import Decoded
from tessera.pipeline.decoding.picture import Picture

_REASON_LENGTH = 200


class PilDecoder:
    """Full decode, crop, antialiased bicubic resize, as torchvision's transform on a PIL image."""

    name = "pil"

    def __init__(self, image_size: int, num_threads: int) -> None:
        """Prepare the threads.

        Args:
            image_size: S, in pixels.
            num_threads: CPU threads.
        """
        self._image_size = image_size
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tessera-pil")

    def decode(
        self,
        encoded: Sequence[bytes],
        windows: NDArray[np.int32],
        plain: NDArray[np.int8] | None = None,
    ) -> Decoded:
        """Decode a batch; see `Decoder.decode`."""
        size = self._image_size
        images = np.zeros((len(encoded), size, size, 3), dtype=np.uint8)
        failures: dict[int, str] = {}

        def decode_into(place: int) -> None:
            try:
                images[place] = decode_window(encoded[place], windows[place], size)
            except Exception as error:
                # Pillow's own errors are PictureErrors by now; MemoryError and the like are not.
                failures[place] = (str(error) or repr(error))[:_REASON_LENGTH]

        list(self._threads.map(decode_into, range(len(encoded))))
        return Decoded(images=torch.from_numpy(images), failures=failures)


def decode_window(data: bytes, window: NDArray[np.int32], size: int) -> NDArray[np.uint8]:
    """One window of one file.

    Args:
        data: the file.
        window: [4] (y, x, height, width) in the upright picture.
        size: S, in pixels.

    Returns:
        [S, S, 3] uint8 RGB.

    Raises:
        ValueError: the file is no picture that is read, pixels of it are missing, or the window
            lies outside.
    """
    image = Picture(data).pixels()
    y, x, height, width = (int(value) for value in window)
    if min(y, x, height - 1, width - 1) < 0 or y + height > image.height or x + width > image.width:
        raise ValueError("the window lies outside of the picture")
    image = image.crop((x, y, x + width, y + height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
