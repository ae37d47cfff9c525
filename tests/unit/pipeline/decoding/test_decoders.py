"""Every decoder against Pillow's bicubic crop, on every kind of file that the index lets in."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tessera.pipeline.decoding import Decoder, choice, open_decoder, turbo
from tests.decoder_pictures import encode, photo, with_orientation

SIZE = 64
KINDS = ("pil", "turbo", "dali")
JPEGS = {
    "4:4:4": encode(photo(240, 180), subsampling=0),
    "4:2:2": encode(photo(241, 179), subsampling=1),
    "4:2:0": encode(photo(243, 181), subsampling=2),
    "progressive": encode(photo(240, 180), progressive=True, subsampling=2),
    "restarts": encode(photo(240, 180), restart_marker_rows=1),
    "optimised": encode(photo(240, 180), optimize=True, quality=60),
    "grey": encode(photo(240, 180, mode="L")),
    "stored as RGB": encode(photo(240, 180), keep_rgb=True),
    "large": encode(photo(1600, 1200)),
    "huge": encode(photo(3001, 2407)),
    "small": encode(photo(40, 30)),
    "thin": encode(photo(300, 9)),
    "one pixel": encode(photo(1, 1)),
}
OTHERS = {
    "CMYK": encode(photo(240, 180, mode="CMYK")),
    "PNG": encode(photo(240, 180), "PNG"),
    "palette PNG": encode(photo(240, 180, mode="P"), "PNG"),
    "WebP": encode(photo(240, 180), "WEBP", lossless=True),
}


@pytest.fixture(scope="module", params=KINDS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return open_decoder(request.param, image_size=SIZE, batch_size=32, num_threads=2)


def windows_of(width: int, height: int) -> NDArray[np.int32]:
    """The whole picture, its corners and a part in the middle."""
    w, h = max(1, width * 2 // 3), max(1, height * 3 // 4)
    windows = [
        (0, 0, height, width),
        (0, 0, h, w),
        (height - h, width - w, h, w),
        ((height - h) // 2, (width - w) // 2, h, w),
    ]
    return np.array(windows, dtype=np.int32)


def by_pillow(data: bytes, window: NDArray[np.int32]) -> NDArray[np.uint8]:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    y, x, height, width = (int(value) for value in window)
    image = image.crop((x, y, x + width, y + height))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def decibels(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    error = ((found.astype(np.float64) - expected) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def check(decoder: Decoder, data: bytes, least_decibels: float) -> None:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        windows = windows_of(upright.width, upright.height)
    decoded = decoder.decode([data] * len(windows), windows)
    assert decoded.failures == {}
    for found, window in zip(decoded.images.numpy(), windows, strict=True):
        assert decibels(found, by_pillow(data, window)) > least_decibels, window


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_as_pillow(decoder: Decoder, kind: str) -> None:
    check(decoder, JPEGS[kind], 42)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_as_pillow(decoder: Decoder, kind: str) -> None:
    check(decoder, OTHERS[kind], 42)


@pytest.mark.parametrize("endian", ["II", "MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_pillow(decoder: Decoder, orientation: int, endian: str) -> None:
    data = with_orientation(encode(photo(241, 150, seed=2)), orientation, endian)
    check(decoder, data, 42)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientation_is_none(decoder: Decoder, orientation: int) -> None:
    data = encode(photo(240, 180))
    windows = windows_of(240, 180)[1:2]
    turned = decoder.decode([with_orientation(data, orientation)], windows)
    assert torch.equal(turned.images, decoder.decode([data], windows).images)


def test_a_bad_picture_spoils_no_other(decoder: Decoder) -> None:
    good = JPEGS["4:2:0"]
    batch = [good, good[: len(good) // 3], b"", b"<html>no picture</html>", good]
    windows = np.repeat(windows_of(243, 181)[:1], len(batch), axis=0)
    decoded = decoder.decode(batch, windows)
    assert sorted(decoded.failures) == [1, 2, 3]
    assert all(decoded.failures.values())
    alone = decoder.decode([good], windows[:1]).images[0]
    assert torch.equal(decoded.images[0], alone)
    assert torch.equal(decoded.images[4], alone)
    assert not decoded.images[1:4].any()
    assert decoder.decode([good], windows[:1]).failures == {}


@pytest.mark.parametrize("window", [(0, 0, 181, 10), (100, 0, 81, 10), (0, 230, 10, 11)])
def test_a_window_outside_is_a_failure(decoder: Decoder, window: tuple[int, int, int, int]) -> None:
    data = encode(photo(240, 180))
    decoded = decoder.decode([data], np.array([window], dtype=np.int32))
    assert list(decoded.failures) == [0]


def test_no_files(decoder: Decoder) -> None:
    decoded = decoder.decode([], np.empty((0, 4), dtype=np.int32))
    assert decoded.images.shape == (0, SIZE, SIZE, 3)


def test_an_earlier_batch_stays_as_it_was(decoder: Decoder) -> None:
    windows = windows_of(240, 180)[:1]
    first = decoder.decode([encode(photo(240, 180, seed=1))], windows).images
    before = first.clone()
    for seed in range(2, 6):
        decoder.decode([encode(photo(240, 180, seed=seed))], windows)
    assert torch.equal(first, before)


@pytest.mark.parametrize("num_threads", [1, 3, 16])
def test_threads_change_nothing(num_threads: int) -> None:
    files = [encode(photo(200 + n, 150 + n, seed=n)) for n in range(10)]
    windows = np.concatenate([windows_of(200 + n, 150 + n)[1:2] for n in range(10)])
    one = open_decoder("turbo", image_size=SIZE, batch_size=16, num_threads=1)
    more = open_decoder("turbo", image_size=SIZE, batch_size=16, num_threads=num_threads)
    assert torch.equal(one.decode(files, windows).images, more.decode(files, windows).images)


def test_flat_colours_stay_flat() -> None:
    data = encode(Image.new("L", (333, 217), 120), quality=100)
    decoder = open_decoder("turbo", image_size=SIZE, batch_size=1, num_threads=1)
    images = decoder.decode([data], np.array([[1, 2, 215, 330]], dtype=np.int32)).images
    assert images.min() == images.max() == 120


def open_kind(kind: choice.DecoderKind) -> Decoder:
    return open_decoder(kind, image_size=SIZE, batch_size=1, num_threads=1)


def falls_back_and_says(what: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, choice.__name__):
        assert open_kind("auto").name == choice.WITHOUT_TURBO
    (line,) = caplog.messages
    assert what in line
    assert "DALI decodes instead" in line
    with pytest.raises(ValueError, match=what):
        open_kind("turbo")


def test_auto_says_that_the_extension_is_not_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_kind("auto").name == "turbo"
    monkeypatch.setitem(sys.modules, "tessera._native", None)
    falls_back_and_says("pip install -c constraints.txt -e .", caplog)


@pytest.mark.parametrize("library", ["missing", "of something else"])
def test_auto_says_that_there_is_no_libjpeg(
    library: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    path = Path(turbo.find_libjpeg())
    other = next(path.parent.glob("libpng*")) if library != "missing" else tmp_path / "none.so"
    monkeypatch.setattr(turbo, "find_libjpeg", lambda: str(other))
    falls_back_and_says("install Pillow as a wheel", caplog)


@pytest.mark.parametrize("kind", ["turbo", "pil"])
def test_a_cpu_decoder_serves_no_gpu(kind: choice.DecoderKind) -> None:
    with pytest.raises(ValueError, match="take 'dali'"):
        open_decoder(kind, image_size=SIZE, batch_size=1, num_threads=1, device="cuda")
