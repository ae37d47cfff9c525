"""Decode JPEG windows with libjpeg-turbo through jpeg_window.c; the fastest path on a CPU.

Only the rows and columns of the window are decoded, in large pictures at 1/2, 1/4 or 1/8 of their
size, and an antialiased bicubic filter brings the rest to its size. What libjpeg-turbo does not
read (PNG, WebP, CMYK) goes to Pillow, picture by picture.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tessera.pipeline.decoding.compiled import load_jpeg_window
from tessera.pipeline.decoding.decoder import Decoded
from tessera.pipeline.decoding.pil import PilDecoder
from tessera.pipeline.native import CompilationError

_DECODED, _DAMAGED, _UNSUPPORTED = range(3)
_REASON_LENGTH = 200


class TurboDecoder:
    """libjpeg-turbo behind the decoder interface. A call runs on its threads without the GIL."""

    name = "turbo"

    def __init__(self, image_size: int, num_threads: int) -> None:
        """Load the compiled code, compile it where needed, and try it on one picture.

        Args:
            image_size: S, in pixels.
            num_threads: CPU threads.

        Raises:
            CompilationError: it cannot be built here.
        """
        self._image_size = image_size
        self._num_threads = num_threads
        self._library = load_jpeg_window()
        self._others = PilDecoder(image_size, num_threads)
        self._try_out()

    def decode(
        self,
        encoded: Sequence[bytes],
        windows: NDArray[np.int32],
        plain: NDArray[np.int8] | None = None,
    ) -> Decoded:
        """Decode a batch; see `Decoder.decode`."""
        images, status, reasons = self._run(encoded, windows)
        failures = {
            int(place): reasons[place].tobytes().split(b"\0", 1)[0].decode("utf-8", "replace")
            for place in np.flatnonzero(status == _DAMAGED)
        }
        others: list[int] = np.flatnonzero(status == _UNSUPPORTED).tolist()
        if others:
            decoded = self._others.decode([encoded[place] for place in others], windows[others])
            images[others] = decoded.images
            failures |= {others[at]: reason for at, reason in decoded.failures.items()}
        return Decoded(images=images, failures=failures)

    def _run(
        self, encoded: Sequence[bytes], windows: NDArray[np.int32]
    ) -> tuple[torch.Tensor, NDArray[np.int32], NDArray[np.uint8]]:
        """Images [B, S, S, 3], status [B], reasons [B, 200] with a zero at their end."""
        count, size = len(encoded), self._image_size
        if windows.shape != (count, 4):
            raise ValueError(f"{count} files need windows [{count}, 4], got {list(windows.shape)}")
        windows = np.ascontiguousarray(windows, dtype=np.int32)
        # Stays so where a thread cannot even start; Pillow decodes then.
        status = np.full(count, _UNSUPPORTED, dtype=np.int32)
        images = torch.empty((count, size, size, 3), dtype=torch.uint8)
        sizes = np.array([len(data) for data in encoded], dtype=np.int64)
        reasons = np.zeros((count, _REASON_LENGTH), dtype=np.uint8)
        files = (ctypes.c_char_p * count)(*encoded)
        self._library.tessera_decode(
            ctypes.addressof(files),
            sizes.ctypes.data,
            windows.ctypes.data,
            count,
            size,
            self._num_threads,
            images.data_ptr(),
            status.ctypes.data,
            reasons.ctypes.data,
        )
        return images, status, reasons

    def _try_out(self) -> None:
        """A library of another layout than declared would show here, before anything is trained."""
        buffer = BytesIO()
        Image.new("RGB", (40, 24), (200, 60, 20)).save(buffer, "JPEG", quality=95)
        window = np.array([[3, 5, 16, 30]], dtype=np.int32)
        images, status, reasons = self._run([buffer.getvalue()], window)
        expected = torch.tensor([200, 60, 20], dtype=torch.int16)
        if status[0] != _DECODED or (images.short() - expected).abs().max() > 4:
            detail = reasons[0].tobytes().split(b"\0", 1)[0].decode("utf-8", "replace")
            raise CompilationError(f"the compiled decoder does not decode a test picture: {detail}")
