"""Decode JPEG windows with libjpeg-turbo through native/; the fastest path on a CPU.

Only the rows and columns of the window are decoded, in large pictures at 1/2, 1/4 or 1/8 of their
size, and an antialiased bicubic filter brings the rest to its size. What libjpeg-turbo does not
read (PNG, WebP, CMYK) goes to Pillow, picture by picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image

from tessera.pipeline.decoding.decoder import Decoded
from tessera.pipeline.decoding.pil import PilDecoder
from tessera.pipeline.native import NotBuiltError, load_native

_MOST_THREADS = 256


class TurboDecoder:
    """libjpeg-turbo behind the decoder interface. A call runs on its threads without the GIL."""

    name = "turbo"

    def __init__(self, image_size: int, num_threads: int) -> None:
        """Load the compiled code and libjpeg-turbo, and try them on one picture.

        Args:
            image_size: S, in pixels.
            num_threads: CPU threads.

        Raises:
            NotBuiltError: the C extension was not built, or there is no libjpeg-turbo for it.
        """
        self._image_size = image_size
        self._num_threads = num_threads
        self._native = load_native()
        self._open_libjpeg()
        self._others = PilDecoder(image_size, num_threads)
        self._try_out()

    def decode(
        self,
        encoded: Sequence[bytes],
        windows: NDArray[np.int32],
        plain: NDArray[np.int8] | None = None,
    ) -> Decoded:
        """Decode a batch; see `Decoder.decode`."""
        images, rest = self._run(encoded, windows)
        failures = {place: reason for place, damaged, reason in rest if damaged}
        others = [place for place, damaged, _ in rest if not damaged]
        if others:
            decoded = self._others.decode([encoded[place] for place in others], windows[others])
            images[others] = decoded.images
            failures |= {others[at]: reason for at, reason in decoded.failures.items()}
        return Decoded(images=images, failures=failures)

    def _open_libjpeg(self) -> None:
        try:
            self._native.open_libjpeg(find_libjpeg())
        except OSError as error:
            raise NotBuiltError(
                f"no libjpeg-turbo to decode with ({error}): install Pillow as a wheel, with pip"
            ) from error

    def _run(
        self, encoded: Sequence[bytes], windows: NDArray[np.int32]
    ) -> tuple[torch.Tensor, list[tuple[int, bool, str]]]:
        """Images [B, S, S, 3], and (place, damaged, reason) of those that are not decoded."""
        count, size = len(encoded), self._image_size
        if windows.shape != (count, 4):
            raise ValueError(f"{count} files need windows [{count}, 4], got {list(windows.shape)}")
        windows = np.ascontiguousarray(windows, dtype=np.int32)
        images = torch.empty((count, size, size, 3), dtype=torch.uint8)
        threads = min(self._num_threads, _MOST_THREADS)
        rest = self._native.decode(tuple(encoded), windows, images.numpy(), size, threads)
        return images, rest

    def _try_out(self) -> None:
        """A library of another layout than declared would show here, before anything is trained."""
        buffer = BytesIO()
        Image.new("RGB", (40, 24), (200, 60, 20)).save(buffer, "JPEG", quality=95, progressive=True)
        window = np.array([[3, 5, 16, 30]], dtype=np.int32)
        images, rest = self._run([buffer.getvalue()], window)
        expected = torch.tensor([200, 60, 20], dtype=torch.int16)
        if rest or (images.short() - expected).abs().max() > 4:
            reason = rest[0][2] if rest else "other colours"
            raise NotBuiltError(f"libjpeg-turbo does not decode a test picture: {reason}")


def find_libjpeg() -> str:
    """The libjpeg-turbo of Pillow's wheel, or else the system's, if it has the same interface."""
    folder = Path(PIL.__file__).parents[1] / "pillow.libs"
    found = sorted(folder.glob("libjpeg-*.so.62*"))
    return str(found[0]) if found else "libjpeg.so.62"
