"""Stored pictures against Pillow's reading of the same files, and against img2dataset's own."""

from __future__ import annotations

import importlib
import io
import random
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.hostile_pictures import (
    PICTURES,
    encoded,
    jpeg_of,
    pixel_bomb,
    pixels_of,
    png16_of,
    rotated_jpeg,
    size_of,
)
from tools.download import upright
from tools.download.causes import Cause, classify
from tools.download.image_header import ImageError, image_kind, read_header
from tools.download.upright import UprightResizer, decode_upright

RESIZER = UprightResizer(
    image_size=256, encode_quality=95, min_image_size=64, max_aspect_ratio=5, max_pixels=10**8
)


def stored(data: bytes, resizer: UprightResizer = RESIZER) -> np.ndarray:
    """The stored picture, [height, width, 3] red first."""
    jpeg, width, height, original_width, original_height, error = resizer(io.BytesIO(data))
    assert error is None
    assert jpeg is not None
    image = Image.open(io.BytesIO(jpeg))
    assert (image.mode, image.format, image.size) == ("RGB", "JPEG", (width, height))
    assert "exif" not in image.info
    assert original_width is not None
    assert original_height is not None
    return np.asarray(image)


def cause_of(data: bytes, resizer: UprightResizer = RESIZER) -> Cause | None:
    *_, error = resizer(io.BytesIO(data))
    return classify("failed_to_resize", error) if error else None


def shrunk(pixels: np.ndarray, size: int = 256) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = min(1.0, size / min(height, width))
    wanted = (round(width * scale), round(height * scale))
    return cv2.resize(pixels, wanted, interpolation=cv2.INTER_AREA)


def assert_close(found: np.ndarray, expected: np.ndarray, mean: float = 2.0) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).mean() < mean


@pytest.mark.parametrize("kind", [name for name in PICTURES if name not in ("grey", "transparent")])
@pytest.mark.parametrize("number", [20, 21])
def test_every_good_picture_is_stored_as_it_looks(kind: str, number: int) -> None:
    tolerance = 14.0 if kind in ("palette", "gif", "animation", "cmyk") else 3.0
    assert_close(stored(PICTURES[kind](number)), shrunk(pixels_of(number)), tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels_of(22)), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert_close(stored(data), shrunk(expected))


def test_orientation_is_undone_under_transparency() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(pixels_of(23)).convert("RGBA")
    data = encoded(image, "PNG", exif=exif)
    assert_close(stored(data), shrunk(np.rot90(pixels_of(23), -1)))


def test_grey_becomes_colour_of_equal_parts() -> None:
    found = stored(PICTURES["grey"](24)).astype(int)
    assert np.abs(found - found.mean(axis=2, keepdims=True)).max() < 1
    assert_close(found[:, :, 0], shrunk(np.asarray(Image.fromarray(pixels_of(24)).convert("L"))))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str) -> None:
    image = Image.fromarray(pixels_of(25)).convert("L" if mode == "LA" else "RGB")
    half = image.copy()
    half.putalpha(Image.new("L", image.size, 102))
    expected = 255 * 0.6 + np.asarray(image.convert("RGB")) * 0.4
    assert_close(stored(encoded(half, "PNG")), shrunk(np.rint(expected).astype(np.uint8)))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_shifted_not_clipped(kind: str) -> None:
    wide = np.linspace(0, 65535, 200 * 240).reshape(200, 240).astype(np.uint16)
    data = cv2.imencode(f".{kind}", wide)[1].tobytes()
    assert_close(stored(data)[:, :, 0], (wide >> 8).astype(np.uint8))
    assert_close(stored(png16_of(26)), shrunk(pixels_of(26)))


def test_float_pixels_are_not_guessed_at() -> None:
    data = cv2.imencode(".tiff", np.ones((90, 90), np.float32))[1].tobytes()
    assert cause_of(data) is Cause.UNSUPPORTED_IMAGE


def test_one_bit_pictures() -> None:
    image = Image.new("1", (100, 90), 1)
    assert stored(encoded(image, "PNG")).min() > 250


def test_nothing_is_made_larger() -> None:
    small = encoded(Image.new("RGB", (70, 65), (10, 200, 30)), "PNG")
    assert stored(small).shape == (65, 70, 3)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upright, "decode_upright", lambda *_: pytest.fail("it was decoded"))
    assert cause_of(pixel_bomb()) is Cause.TOO_MANY_PIXELS


@pytest.mark.parametrize(("size", "cause"), [
    ((64, 64), None), ((63, 200), Cause.TOO_SMALL), ((1, 1), Cause.TOO_SMALL),
    ((500, 100), None), ((501, 100), Cause.ASPECT_RATIO), ((100, 501), Cause.ASPECT_RATIO),
])  # fmt: skip
def test_limits_of_size_and_shape(size: tuple[int, int], cause: Cause | None) -> None:
    assert cause_of(encoded(Image.new("RGB", size), "PNG")) is cause


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_cut_files_are_damaged_wherever_they_are_cut(kind: str) -> None:
    data = encoded(Image.fromarray(pixels_of(27)), kind)
    for share in (0.05, 0.3, 0.6, 0.9, 0.98):
        assert cause_of(data[: int(len(data) * share)]) is Cause.DAMAGED_IMAGE, share


def test_headers_agree_with_pillow() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        header = read_header(encoded(Image.fromarray(pixels_of(28)), kind))
        assert (header.kind, header.width, header.height) == (kind.lower(), *size_of(28))
    for lossless in (True, False):
        image = Image.fromarray(pixels_of(28)).convert("RGBA")
        header = read_header(encoded(image, "WEBP", lossless=lossless))
        assert (header.width, header.height) == size_of(28)
    progressive = encoded(Image.fromarray(pixels_of(28)), "JPEG", progressive=True)
    assert (read_header(progressive).width, read_header(progressive).height) == size_of(28)


@pytest.mark.parametrize(("data", "cause"), [
    (b"", Cause.EMPTY),
    (b"<!DOCTYPE html><p>", Cause.NOT_AN_IMAGE), (b"\xef\xbb\xbf\n <HTML>", Cause.NOT_AN_IMAGE),
    (b'<?xml version="1.0"?><svg/>', Cause.NOT_AN_IMAGE),
    (b"BMW is a car maker in Bavaria", Cause.NOT_AN_IMAGE),
    (bytes(100), Cause.NOT_AN_IMAGE), (b"%PDF-1.4", Cause.NOT_AN_IMAGE),
    (b"\0\0\0\x18ftypheic" + bytes(40), Cause.UNSUPPORTED_IMAGE),
    (b"\0\0\0\x18ftypmp42" + bytes(40), Cause.UNSUPPORTED_IMAGE),
    (b"\0\0\1\0" + bytes(40), Cause.UNSUPPORTED_IMAGE),
])  # fmt: skip
def test_what_is_no_picture(data: bytes, cause: Cause) -> None:
    with pytest.raises(ImageError) as raised:
        image_kind(data)
    assert raised.value.cause is cause


def test_damaged_bytes_never_raise() -> None:
    rng = random.Random(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        whole = encoded(Image.fromarray(pixels_of(29)), kind)
        for _ in range(40):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(min(len(data), 600))] = rng.randrange(256)
            result = RESIZER(io.BytesIO(bytes(data)))
            assert (result[0] is None) == (result[5] is not None)


def test_an_ordinary_jpeg_is_stored_as_img2dataset_stores_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    resizer = importlib.import_module("img2dataset.resizer").Resizer(
        image_size=256, resize_mode="keep_ratio", resize_only_if_bigger=True, encode_quality=95
    )
    for number in range(30, 40):
        assert RESIZER(io.BytesIO(jpeg_of(number))) == resizer(io.BytesIO(jpeg_of(number)))


def test_a_png_that_claims_a_chunk_longer_than_itself_is_damaged() -> None:
    """The codec would take the memory for it first: half a gigabyte was seen."""
    data = encoded(Image.fromarray(pixels_of(42)), "PNG")
    claimed = data[:33] + struct.pack(">I", 1 << 29) + data[37:]
    with pytest.raises(ImageError, match="longer than the file"):
        read_header(claimed)
    assert read_header(data + b"behind the end") == read_header(data)


def test_an_ordinary_jpeg_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decodes: list[int] = []
    real = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *args: decodes.append(1) or real(*args))
    stored(rotated_jpeg(41, 6))
    assert len(decodes) == 1


def test_the_messages_of_codecs_stay_out_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(Image.fromarray(pixels_of(42)), "PNG")
    middle = len(data) // 2
    data = data[:middle] + bytes(20) + data[middle + 20 :]
    with pytest.raises(ImageError):
        decode_upright(data, read_header(data))
    print("after")
    assert capfd.readouterr() == ("after\n", "")
