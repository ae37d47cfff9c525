"""Real photos through every decoder, against the transform that open_clip trains with."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize

from tessera.model import build_clip
from tessera.pipeline.crops import DRAWS_PER_WINDOW, CropConfig, draw_windows
from tessera.pipeline.decoding import DecoderKind, open_decoder
from tessera.pipeline.patches import patchify

SIZE = 224
SCALES = [(0.4, 1.0), (0.9, 1.0)]
Photos = tuple[list[bytes], NDArray[np.int32]]


@pytest.fixture(scope="module", params=["coco-val159", "clothing"])
def photos(request: pytest.FixtureRequest, real_data: Path) -> Photos:
    """48 files and their sizes [48, 2] (width, height)."""
    with tarfile.open(real_data / request.param / "00000.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][:48]
        files = [file.read() for member in members if (file := tar.extractfile(member))]
    sizes = [Image.open(io.BytesIO(data)).size for data in files]
    return files, np.array(sizes, dtype=np.int32)


def windows_of(photos: Photos, scale: tuple[float, float]) -> NDArray[np.int32]:
    sizes = photos[1]
    draws = np.random.default_rng(7).random((len(sizes), DRAWS_PER_WINDOW))
    return draw_windows(sizes[:, 0], sizes[:, 1], draws, CropConfig(scale=scale))


def by_torchvision(photos: Photos, windows: NDArray[np.int32]) -> torch.Tensor:
    """RandomResizedCrop's own two steps, on the same windows."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resized_crop

    images = []
    for data, (y, x, height, width) in zip(photos[0], windows.tolist(), strict=True):
        # torchvision takes PIL images too, and its annotations do not say so.
        image: Any = Image.open(io.BytesIO(data)).convert("RGB")
        bicubic = InterpolationMode.BICUBIC
        crop = resized_crop(image, y, x, height, width, [SIZE, SIZE], bicubic)
        images.append(np.asarray(crop))
    return torch.from_numpy(np.stack(images))


def decode(kind: DecoderKind, photos: Photos, windows: NDArray[np.int32]) -> torch.Tensor:
    decoder = open_decoder(kind, image_size=SIZE, batch_size=64, num_threads=2)
    decoded = decoder.decode(photos[0], windows)
    assert decoded.failures == {}
    return decoded.images


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["turbo", "dali", "pil"])
def test_pixels_as_open_clip(photos: Photos, kind: DecoderKind, scale: tuple[float, float]) -> None:
    windows = windows_of(photos, scale)
    expected = by_torchvision(photos, windows).double()
    distance = decode(kind, photos, windows).double() - expected
    decibels = 10 * torch.log10(255**2 / distance.square().mean(dim=(1, 2, 3)).clamp_min(1e-9))
    assert decibels.min() > 50
    assert distance.abs().mean() < 0.3
    assert distance.abs().flatten().kthvalue(int(0.999 * distance.numel())).values <= 3


@pytest.mark.parametrize("kind", ["turbo", "dali"])
def test_features_as_with_open_clip(photos: Photos, kind: DecoderKind) -> None:
    windows = windows_of(photos, (0.4, 1.0))
    expected = features(by_torchvision(photos, windows))
    found = features(decode(kind, photos, windows))
    assert (found - expected).norm(dim=1).max() < 1e-2


def features(images: torch.Tensor) -> torch.Tensor:
    """Unit features [B, E] of a model with a fixed seed."""
    torch.manual_seed(0)
    model = build_clip("tessera-xs-16").eval()
    patches = patchify(images, 16)
    count, num_patches, values = patches.shape
    positions = torch.arange(num_patches, dtype=torch.int32).repeat(count)
    offsets = torch.arange(count + 1, dtype=torch.int32) * num_patches
    with torch.inference_mode():
        found = model.encode_image(patches.reshape(-1, values), positions, offsets)
    return normalize(found, dim=1)
