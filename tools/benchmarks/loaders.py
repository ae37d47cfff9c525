"""Other loaders over whole tar files, with the same number of processes or threads."""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from tessera.tools.benchmarks.limits import open_clip_transform
from tessera.tools.benchmarks.side import Setting, UnavailableError, Work

_MANY = 1_000_000_000
_SHUFFLED = 1000
_PREFETCH_FACTOR = 2


class _DataLoaderSide:
    """A torch DataLoader of webdataset batches that never ends."""

    def __init__(self, setting: Setting, batches: Iterator[Any]) -> None:
        self._batches = batches
        # Each worker has as many ready, and one in hand.
        self.ahead = setting.num_workers * (_PREFETCH_FACTOR + 1)

    def run(self, num_batches: int) -> Work:
        """Take batches."""
        num_images = num_bytes = 0
        for images, texts in islice(self._batches, num_batches):
            num_images += len(images)
            num_bytes += images.numel() * images.element_size()
            num_bytes += texts.numel() * texts.element_size() if hasattr(texts, "numel") else 0
        return Work(num_images=num_images, known={"num_bytes": num_bytes})

    def close(self) -> None:
        """End the worker processes."""
        del self._batches


def open_clip_side(setting: Setting) -> _DataLoaderSide:
    """open_clip's own training loader, built by its own code; captions are tokenised.

    Raises:
        UnavailableError: open_clip_torch is not installed.
    """
    try:
        import open_clip
        from open_clip_train import data as open_clip_data
    except ImportError as error:
        raise UnavailableError(f"open_clip_torch is not installed ({error})") from None
    arguments = argparse.Namespace(
        train_data="::".join(setting.shards),
        train_data_upsampling_factors=None,
        train_num_samples=_MANY,
        val_num_samples=None,
        # With replacement, so that few shards serve any number of workers without an end.
        dataset_resampled=True,
        batch_size=setting.batch_size,
        workers=setting.num_workers,
        world_size=1,
        seed=0,
    )
    _fork_workers()
    expand = open_clip_data.tar_file_expander
    if "eof_value" in inspect.signature(expand).parameters:
        # Newer versions of webdataset mark the end of a shard, which ends open_clip 3.3's workers
        # with a KeyError; without the mark they go on from shard to shard.
        open_clip_data.tar_file_expander = partial(expand, eof_value=None)
    data = open_clip_data.get_wds_dataset(
        arguments,
        open_clip_transform(setting),
        is_train=True,
        tokenizer=open_clip.get_tokenizer("ViT-B-16"),
    )
    return _DataLoaderSide(setting, iter(data.dataloader))


def torchvision_side(setting: Setting) -> _DataLoaderSide:
    """webdataset, torch's DataLoader, and torchvision's decoder and transforms; texts stay texts.

    Raises:
        UnavailableError: webdataset or torchvision is not installed.
    """
    try:
        import webdataset as wds
    except ImportError as error:
        raise UnavailableError(f"webdataset is not installed ({error})") from None
    from torch.utils.data import DataLoader

    prepare = _TorchvisionTransform(setting)
    dataset = (
        wds.WebDataset(list(setting.shards), resampled=True, shardshuffle=False, handler=_skip)
        .shuffle(_SHUFFLED)
        .to_tuple("jpg;jpeg;png;webp", "txt", handler=_skip)
        .map_tuple(prepare, bytes.decode, handler=_skip)
        .batched(setting.batch_size)
    )
    _fork_workers()
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=setting.num_workers,
        prefetch_factor=_PREFETCH_FACTOR,
        persistent_workers=True,
    )
    return _DataLoaderSide(setting, iter(loader))


class _TorchvisionTransform:
    """Bytes to a normalised float image; a class, since it is sent to the workers."""

    def __init__(self, setting: Setting) -> None:
        try:
            import torch
            from torchvision.io import ImageReadMode, decode_image
            from torchvision.transforms import v2
        except ImportError as error:
            raise UnavailableError(f"torchvision is not installed ({error})") from None
        from tessera.pipeline.patches import CLIP_MEAN, CLIP_STD

        self._decode, self._mode = decode_image, ImageReadMode.RGB
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    setting.image_size,
                    scale=setting.crop.scale,
                    ratio=setting.crop.ratio,
                    interpolation=v2.InterpolationMode.BICUBIC,
                    antialias=True,
                ),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(CLIP_MEAN), list(CLIP_STD)),
            ]
        )

    def __call__(self, data: bytes) -> Any:
        import numpy as np
        import torch

        encoded = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
        return self._transform(self._decode(encoded, mode=self._mode))


def _fork_workers() -> None:
    """As on Linux without this benchmark: a side's process is spawned, and its own would be too."""
    multiprocessing.set_start_method("fork", force=True)


def _skip(error: Exception) -> bool:
    """Go on behind a bad sample, and say so: the rate would be wrong in silence."""
    print(f"webdataset: {error}", file=sys.stderr)
    return True
