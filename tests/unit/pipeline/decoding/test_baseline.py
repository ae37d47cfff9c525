"""The quick way for baseline JPEG: libjpeg-turbo's pixels bit for bit, and safe on any bytes."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.pipeline.decoding import open_decoder
from tessera.pipeline.decoding.turbo import find_libjpeg
from tests.decoder_pictures import encode, photo, with_orientation

QUALITIES = (30, 75, 92, 100)
LAYOUTS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "restarts": {"restart_marker_blocks": 3},
    "restarted rows": {"restart_marker_rows": 1},
    "optimised": {"optimize": True},
}
FUZZED_FILES = 6000
NATIVE = Path(__file__).resolve().parents[4] / "native"


def exactly(data: bytes, y: int, x: int, side: int) -> None:
    """A window of the output's own size is not resized, so its pixels must be Pillow's."""
    decoder = open_decoder("turbo", image_size=side, batch_size=1, num_threads=1)
    decoded = decoder.decode([data], np.array([[y, x, side, side]], dtype=np.int32))
    assert decoded.failures == {}
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[y : y + side, x : x + side]
    np.testing.assert_array_equal(decoded.images[0].numpy(), expected)


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pixels_of_libjpeg_turbo(layout: str, quality: int) -> None:
    for width, height in [(193, 131), (176, 128), (150, 177)]:
        data = encode(photo(width, height, seed=quality), quality=quality, **LAYOUTS[layout])
        exactly(data, 0, 0, 120)
        exactly(data, height - 77, width - 77, 77)
        exactly(data, 5, 13, 90)
        exactly(data, 16, 33, 1)


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_pixels_of_libjpeg_turbo_in_grey(quality: int) -> None:
    exactly(encode(photo(193, 131, mode="L"), quality=quality), 3, 9, 111)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_saturated_noise(subsampling: int) -> None:
    """Numbers as large as they become: long codes, every place of a block, sums to be cut off."""
    noise = np.random.default_rng(5).integers(0, 2, (96, 112, 3), dtype=np.uint8) * 255
    data = encode(Image.fromarray(noise), quality=100, subsampling=subsampling, optimize=True)
    exactly(data, 0, 0, 96)


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (9, 5), (17, 16)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_small_pictures(size: tuple[int, int], subsampling: int) -> None:
    data = encode(photo(*size), subsampling=subsampling)
    for y, x in [(0, 0), (size[1] - 3, size[0] - 3)]:
        exactly(data, y, x, 3)


def test_damaged_files_under_sanitisers(tmp_path: Path) -> None:
    """No read or write outside of anything, and the pixels of libjpeg-turbo where both decode."""
    program = _build_fuzzer(tmp_path)
    pictures = {
        "420": encode(photo(97, 70, seed=1), subsampling=2),
        "444": encode(photo(160, 121, seed=2), subsampling=0, quality=98),
        "restarts": encode(photo(121, 160, seed=3), restart_marker_blocks=3),
        "turned": with_orientation(encode(photo(130, 90, seed=4), subsampling=1), 6),
        "grey": encode(photo(90, 90, seed=5, mode="L"), optimize=True),
        "coarse": encode(photo(190, 190, seed=6), quality=40),
    }
    for name, data in pictures.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    files = [str(tmp_path / f"{name}.jpg") for name in pictures]
    result = subprocess.run(
        [str(program), find_libjpeg(), str(FUZZED_FILES), "1", *files],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    decoded, refused, cut_off, different = map(int, result.stdout.split())
    assert decoded - refused - cut_off > FUZZED_FILES / 6
    assert different == 0
    # libjpeg-turbo reads ahead, so it also complains of what is missing behind the window.
    complaints = result.stderr.splitlines()
    assert len(complaints) == refused
    assert all("Premature end of JPEG file" in complaint for complaint in complaints)


def _build_fuzzer(folder: Path) -> Path:
    """Skips where there is no compiler, or it has no sanitisers."""
    compiler, program = shutil.which("gcc") or shutil.which("clang"), folder / "fuzz_window"
    if compiler is None:
        pytest.skip("neither gcc nor clang")
    command = [compiler, "-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += [str(NATIVE / "fuzz_window.c"), str(NATIVE / "libjpeg.c")]
    command += ["-ldl", "-lm", "-pthread", "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "san" in built.stderr and "cannot find" in built.stderr:
        pytest.skip("this compiler has no sanitisers")
    assert built.returncode == 0, built.stderr[-3000:]
    return program
