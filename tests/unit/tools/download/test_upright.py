"""Stored pictures against what the same files show, and files that are refused."""

from __future__ import annotations

import io
import random
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tessera.tools.download.causes import Cause, RefusedError, classify
from tessera.tools.download.upright import UprightResizer, image_kind
from tests.hostile_pictures import (
    PICTURES,
    encoded,
    pixel_bomb,
    pixels_of,
    png16_of,
)

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
    floats = cv2.imencode(".tiff", np.ones((90, 90), np.float32))[1].tobytes()
    assert cause_of(floats) is Cause.UNSUPPORTED_IMAGE


def test_one_bit_pictures_and_nothing_is_made_larger() -> None:
    assert stored(encoded(Image.new("1", (100, 90), 1), "PNG")).min() > 250
    assert stored(encoded(Image.new("RGB", (70, 65), (10, 200, 30)), "PNG")).shape == (65, 70, 3)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    pixel_bomb()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert cause_of(pixel_bomb()) is Cause.TOO_MANY_PIXELS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000


def test_a_progressive_jpeg_of_thousands_of_empty_scans_is_refused() -> None:
    data = encoded(Image.fromarray(pixels_of(43)), "JPEG", progressive=True)
    assert cause_of(data) is None
    start = data.rindex(b"\xff\xda")
    header = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4])]
    bomb = data[:-2] + header * 5000 + data[-2:]
    assert cause_of(bomb) is Cause.UNSUPPORTED_IMAGE


def test_an_embedded_thumbnail_and_data_after_the_picture_do_not_count_as_scans() -> None:
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 10
    data = encoded(Image.fromarray(pixels_of(44)), "JPEG", exif=exif) + b"\xff\xda" * 5000
    assert_close(stored(data), shrunk(pixels_of(44)))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("frame_bytes", [0, 1, 3, 400])
def test_an_animated_png_is_refused_whatever_its_frames_hold(frame_bytes: int) -> None:
    """OpenCV's reader died of the short ones, and took the shard with it."""
    still = encoded(Image.new("RGBA", (128, 90), (9, 90, 200, 255)), "PNG")
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 128, 90, 0, 0, 100, 1000, 0, 0))
    frame += chunk(b"fdAT", bytes(frame_bytes))
    animated = still[:33] + chunk(b"acTL", struct.pack(">II", 2, 0)) + still[33:-12] + frame
    assert cause_of(still) is None
    assert cause_of(animated + still[-12:]) is Cause.UNSUPPORTED_IMAGE
    whole = encoded(Image.new("RGB", (99, 99)), "PNG", save_all=True,
                    append_images=[Image.new("RGB", (99, 99), (9, 9, 9))])  # fmt: skip
    assert cause_of(whole) is Cause.UNSUPPORTED_IMAGE


def test_an_orientation_after_the_pixels_of_a_png_counts() -> None:
    data = encoded(Image.fromarray(pixels_of(45)), "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    block = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    assert_close(stored(data[:-12] + block + data[-12:]), shrunk(np.rot90(pixels_of(45), -1)))


def test_a_palette_and_a_colour_key_that_are_transparent_lie_on_white() -> None:
    image = Image.new("P", (90, 80), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    assert stored(encoded(image, "PNG", transparency=1)).min() > 250
    keyed = Image.new("RGB", (90, 80), (1, 2, 3))
    assert stored(encoded(keyed, "PNG", transparency=(1, 2, 3))).min() > 250


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
    with pytest.raises(RefusedError) as raised:
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


def test_a_large_picture_is_stored_as_an_area_average() -> None:
    height, width = 1400, 1100
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows % 256, columns % 256, (rows // 7 + columns // 9) % 256], axis=2)
    image = Image.fromarray(pixels.astype(np.uint8))
    for kind in ("JPEG", "PNG"):
        assert_close(stored(encoded(image, kind)), shrunk(pixels.astype(np.uint8)), 6.0)
        *_, width_before, height_before, _ = RESIZER(io.BytesIO(encoded(image, kind)))
        assert (width_before, height_before) == (width, height)


def test_the_size_before_resizing_is_that_of_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (900, 700)), "JPEG", exif=exif)
    assert RESIZER(io.BytesIO(data))[1:5] == (256, 329, 700, 900)
