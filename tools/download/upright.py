"""A downloaded picture to the JPEG that is stored: decoded once, upright, 8 bits, small enough.

Stands in for img2dataset's Resizer, which stores pictures with an EXIF orientation sideways, turns
16-bit PNGs white and decodes a picture of 144 megapixels before it looks at the limit. What it
stores has three channels always: grey is written as colour, and what is transparent lies on white.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np

from tools.download.causes import Cause, message
from tools.download.image_header import Header, ImageError, read_header

Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]

_TURNS = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class UprightResizer:
    """Called by img2dataset with the bytes of one picture; returns the bytes to store."""

    image_size: int
    """Pixels of the short side; larger pictures are made smaller, no picture is made larger."""
    encode_quality: int
    """JPEG quality, 1 to 100."""
    min_image_size: int
    """Pixels that the short side must have."""
    max_aspect_ratio: float
    """Long side divided by short side, at most."""
    max_pixels: int
    """Pixels by the header, at most."""

    def __call__(self, img_stream: BytesIO, blurring_bbox_list: object = None) -> Resized:
        """Decode, resize and encode one picture; never raises.

        Args:
            img_stream: the file as it was downloaded.
            blurring_bbox_list: img2dataset's boxes to blur, which are not supported.

        Returns:
            The JPEG, its width and height, the upright width and height before resizing, and None;
            or five times None and `CAUSE: detail`.
        """
        if blurring_bbox_list is not None:
            return _failed(Cause.UNKNOWN, "boxes to blur are not supported")
        try:
            return self._resize(img_stream.getvalue())
        except ImageError as error:
            return _failed(error.cause, error.detail)
        except MemoryError:
            return _failed(Cause.TOO_MANY_PIXELS, "not enough memory to decode it")
        except Exception as error:  # it would end the row without a line in the parquet
            return _failed(Cause.UNKNOWN, f"{type(error).__name__} while resizing")

    def _resize(self, data: bytes) -> Resized:
        header = read_header(data)
        self._check_size(header)
        image = decode_upright(data, header)
        height, width = image.shape[:2]
        stored = image
        if min(height, width) > self.image_size:
            scale = self.image_size / min(height, width)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            stored = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        done, jpeg = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, self.encode_quality])
        if not done:
            raise ImageError(Cause.UNKNOWN, "the JPEG encoder failed")
        return jpeg.tobytes(), stored.shape[1], stored.shape[0], width, height, None

    def _check_size(self, header: Header) -> None:
        short, long = sorted((header.width, header.height))
        if short * long > self.max_pixels:
            raise ImageError(Cause.TOO_MANY_PIXELS, "more pixels than the limit")
        if short < self.min_image_size:
            raise ImageError(Cause.TOO_SMALL, "the short side is too short")
        if long > self.max_aspect_ratio * short:
            raise ImageError(Cause.ASPECT_RATIO, "too long for its width")


def decode_upright(data: bytes, header: Header) -> np.ndarray:
    """The pixels of a picture the right way up.

    Args:
        data: the file.
        header: what `read_header` says about it.

    Returns:
        [height, width, 3] uint8, blue first, without transparency.

    Raises:
        ImageError: it cannot be decoded.
    """
    # OpenCV turns and converts a JPEG while it decodes it. For the other formats that would drop
    # the transparency, so they are taken as they are.
    flags = cv2.IMREAD_COLOR if header.kind == "jpeg" else cv2.IMREAD_UNCHANGED
    cv2.setNumThreads(1)
    with _no_native_messages():
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            image = None
    if image is None:
        raise ImageError(Cause.DAMAGED_IMAGE, f"the {header.kind} cannot be decoded")
    if header.kind == "jpeg":
        return image
    turn = _TURNS.get(header.orientation)
    image = _on_white(_eight_bits(image))
    return image if turn is None else turn(image)


@contextmanager
def _no_native_messages() -> Iterator[None]:
    """Keep the codecs' warnings, one and more for many sound pictures, out of the log."""
    nowhere, stderr = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _eight_bits(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)
    raise ImageError(Cause.UNSUPPORTED_IMAGE, f"{image.dtype} pixels")


def _on_white(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 3:
        return image
    if image.shape[2] != 4:
        raise ImageError(Cause.UNSUPPORTED_IMAGE, f"{image.shape[2]} channels")
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return np.rint(image[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _failed(cause: Cause, detail: str) -> Resized:
    return None, None, None, None, None, message(cause, detail)
