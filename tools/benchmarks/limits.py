"""One core against one core: full JPEG decoding alone, and open_clip's train transform."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from importlib import import_module

import numpy as np
import torch
from PIL import Image

from tessera.pipeline.index.dataset import open_dataset
from tessera.pipeline.reader import ShardReader
from tessera.tools.benchmarks.side import Setting, UnavailableError, Work

_MOST_HELD = 256
_TRIAL_IMAGES = 24
_TRIALS = 3


class FullDecodeSide:
    """Every pixel of every file with libjpeg-turbo, in memory already, and nothing else.

    Of the libraries that are installed the fastest is taken: it is the limit that people quote.
    """

    ahead = 0

    def __init__(self, setting: Setting) -> None:
        """Read the files and try the libraries."""
        self._files = jpeg_files(setting)
        self._batch_size = setting.batch_size
        self._next = 0
        trial = self._files[:_TRIAL_IMAGES]
        seconds = {
            name: min(_seconds(decode, trial) for _ in range(_TRIALS))
            for name, decode in _decoders().items()
        }
        self.name = min(seconds, key=lambda name: seconds[name])
        self._decode = _decoders()[self.name]

    def run(self, num_batches: int) -> Work:
        """Decode files, beginning again at the end."""
        num_images = num_batches * self._batch_size
        for number in range(self._next, self._next + num_images):
            self._decode(self._files[number % len(self._files)])
        self._next += num_images
        return Work(num_images=num_images, known={"library": self.name})

    def close(self) -> None:
        """Nothing is open."""


class TransformSide:
    """open_clip's train transform on every file: PIL decode, crop, bicubic resize, normalise."""

    ahead = 0

    def __init__(self, setting: Setting) -> None:
        """Read the files."""
        self._transform = open_clip_transform(setting)
        self._files = _files(setting)
        self._batch_size = setting.batch_size
        self._next = 0

    def run(self, num_batches: int) -> Work:
        """Transform files, beginning again at the end."""
        num_images = num_batches * self._batch_size
        for number in range(self._next, self._next + num_images):
            data = self._files[number % len(self._files)]
            self._transform(Image.open(io.BytesIO(data)).convert("RGB"))
        self._next += num_images
        return Work(num_images=num_images)

    def close(self) -> None:
        """Nothing is open."""


def open_clip_transform(setting: Setting) -> Callable[[Image.Image], object]:
    """open_clip's train transform with the crops of this run.

    Raises:
        UnavailableError: open_clip is not installed.
    """
    try:
        from open_clip.transform import image_transform
    except ImportError as error:
        raise UnavailableError(f"open_clip_torch is not installed ({error})") from None
    transform = image_transform(
        setting.image_size,
        is_train=True,
        aug_cfg={"scale": setting.crop.scale, "ratio": setting.crop.ratio},
    )
    assert not isinstance(transform, tuple)  # one for training, asked for alone
    return transform


def jpeg_files(setting: Setting) -> list[bytes]:
    """JPEG files of samples from all over the set.

    Raises:
        UnavailableError: there is none.
    """
    found = [data for data in _files(setting) if data[:2] == b"\xff\xd8"]
    if not found:
        raise UnavailableError("there is no JPEG among the files")
    return found


def _files(setting: Setting) -> list[bytes]:
    """Files of samples from all over the set."""
    dataset = open_dataset(setting.reference)
    count = min(dataset.num_samples, _MOST_HELD)
    all_ids = dataset.of_samples(np.arange(dataset.index.num_samples))
    chosen = all_ids[np.linspace(0, len(all_ids) - 1, count).astype(np.int64)]
    reader = ShardReader(dataset.index, 1)
    found = reader.read(chosen)
    reader.close()
    return [data for data in found if isinstance(data, bytes)]


def _seconds(decode: Callable[[bytes], object], files: list[bytes]) -> float:
    start = time.perf_counter()
    for data in files:
        decode(data)
    return time.perf_counter() - start


def _decoders() -> dict[str, Callable[[bytes], object]]:
    """Full decoders to RGB that are installed."""
    found: dict[str, Callable[[bytes], object]] = {
        "PIL": lambda data: Image.open(io.BytesIO(data)).convert("RGB")
    }
    try:
        simplejpeg = import_module("simplejpeg")
        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ImportError:
        pass
    try:
        turbojpeg = import_module("turbojpeg").TurboJPEG()
        found["PyTurboJPEG"] = lambda data: turbojpeg.decode(data, pixel_format=0)
    except (ImportError, RuntimeError, OSError):  # the library itself may be missing
        pass
    try:
        io_of_torchvision = import_module("torchvision.io")
        found["torchvision.io"] = lambda data: io_of_torchvision.decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8),
            mode=io_of_torchvision.ImageReadMode.RGB,
        )
    except (ImportError, RuntimeError, OSError):  # built for another torch
        pass
    return found
