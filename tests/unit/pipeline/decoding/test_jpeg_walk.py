"""Which files are plain JPEGs, the only ones that DALI may see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tessera.pipeline.decoding.jpeg_walk import (
    MAX_SCANS,
    JpegLayoutError,
    has_plain_header,
    plain_jpeg,
    walk_jpeg,
)
from tests.decoder_pictures import encode, photo, with_orientation

ROOT = Path(__file__).resolve().parents[4]
WHOLE = encode(photo(97, 70), subsampling=2)
PROGRESSIVE = encode(photo(97, 70), progressive=True)


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def behind_first_marker(data: bytes, extra: bytes) -> bytes:
    return data[:2] + extra + data[2:]


def changed(data: bytes, marker: int, place: int, value: int) -> bytes:
    """The file with another byte at a place of the first such segment's body."""
    at = data.index(bytes((0xFF, marker))) + 4 + place
    return data[:at] + bytes((value,)) + data[at + 1 :]


ADOBE = b"Adobe\0\x64\0\0\0\0"
PLAIN = {
    "4:2:0": WHOLE,
    "4:2:2": encode(photo(97, 70), subsampling=1),
    "4:4:4": encode(photo(97, 70), subsampling=0),
    "grey": encode(photo(97, 70, mode="L")),
    "progressive": PROGRESSIVE,
    "restarts": encode(photo(97, 70), restart_marker_rows=1),
    "optimised": encode(photo(97, 70), optimize=True),
    "turned": with_orientation(WHOLE, 6),
    "comment": encode(photo(97, 70), comment=b"text"),
    "colour profile": encode(photo(97, 70), icc_profile=bytes(70_000)),
    "thumbnail": encode(photo(97, 70), exif=b"Exif\0\0" + WHOLE),
    "Adobe YCbCr": behind_first_marker(WHOLE, segment(0xEE, ADOBE + b"\1")),
}
NOT_PLAIN = {
    "empty": b"",
    "text": b"<html>not found</html>" * 50,
    "zeros": bytes(5000),
    "header overwritten": bytes(64) + WHOLE[64:],
    "PNG": encode(photo(97, 70), "PNG"),
    "animated PNG": encode(photo(9, 7), "PNG", save_all=True, append_images=[photo(9, 7, seed=1)]),
    "WebP": encode(photo(97, 70), "WEBP"),
    "CMYK": encode(photo(97, 70, mode="CMYK")),
    "stored as RGB": encode(photo(97, 70), keep_rgb=True),
    "Adobe RGB": behind_first_marker(WHOLE, segment(0xEE, ADOBE + b"\0")),
    "Adobe cut": behind_first_marker(WHOLE, segment(0xEE, ADOBE[:7])),
    "stray bytes": behind_first_marker(WHOLE, b"\n" * 7),
    "fill bytes": behind_first_marker(WHOLE, b"\xff\xff"),
    "stray restart": behind_first_marker(WHOLE, b"\xff\xd0"),
    "unknown marker": behind_first_marker(WHOLE, segment(0x10, b"what")),
    "length 1": behind_first_marker(WHOLE, b"\xff\xfe\0\1"),
    "two EXIF blocks": with_orientation(with_orientation(WHOLE, 6), 3),
    "12 bits": changed(WHOLE, 0xC0, 0, 12),
    "no height": changed(changed(WHOLE, 0xC0, 1, 0), 0xC0, 2, 0),
    "extended": WHOLE.replace(b"\xff\xc0", b"\xff\xc1"),
    "lossless": WHOLE.replace(b"\xff\xc0", b"\xff\xc3"),
    "arithmetic": WHOLE.replace(b"\xff\xc0", b"\xff\xc9"),
    "4:1:1": changed(WHOLE, 0xC0, 7, 0x41),
    "components called RGB": changed(WHOLE, 0xC0, 6, ord("R")),
    "unknown quantiser": changed(WHOLE, 0xC0, 8, 3),
    "quantiser of 16 bits": changed(WHOLE, 0xDB, 0, 0x10),
    "Huffman table of class 2": changed(WHOLE, 0xC4, 0, 0x20),
    "Huffman table with too many codes": changed(WHOLE, 0xC4, 5, 255),
    "no Huffman tables": WHOLE.replace(b"\xff\xc4", b"\xff\xfe"),
    "half a spectrum": changed(WHOLE, 0xDA, 8, 31),
    "end cut": WHOLE[:-2],
    "half": WHOLE[: len(WHOLE) // 2],
    "data behind the end": WHOLE + bytes(100),
    "two pictures": WHOLE + WHOLE,
    "restarts without an interval": encode(photo(97, 70), restart_marker_rows=1).replace(
        b"\xff\xdd", b"\xff\xfe"
    ),
    "progressive cut between scans": PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")],
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name: str) -> None:
    assert plain_jpeg(PLAIN[name])
    assert has_plain_header(PLAIN[name])


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_not_plain(name: str) -> None:
    assert not plain_jpeg(NOT_PLAIN[name])


def test_a_file_that_was_overwritten_no_longer_has_a_plain_header() -> None:
    assert not has_plain_header(WHOLE[:-2] + b"\0\0")
    for size in range(len(WHOLE) - 1):
        assert not has_plain_header(WHOLE[:size])
    assert not has_plain_header(bytes(len(WHOLE)))
    assert not has_plain_header(b"<html>" + WHOLE[6:])


def test_the_picture_ends_with_its_own_end_marker() -> None:
    for tail in (b"", bytes(300), WHOLE, b"\0\0\0\x18ftypmp42" + b"\xff\xda\xff\xd9" * 9):
        for data in (*PLAIN.values(), NOT_PLAIN["CMYK"], NOT_PLAIN["stray bytes"]):
            layout = walk_jpeg(data + tail)
            assert layout.end == len(data)
            assert (layout.width, layout.height) == (97, 70)
    assert walk_jpeg(PLAIN["thumbnail"][:-2]).end == 0
    assert walk_jpeg(PLAIN["turned"]).orientation == 6


def test_scans_are_counted_up_to_the_limit() -> None:
    assert walk_jpeg(WHOLE).scans == 1
    assert walk_jpeg(PROGRESSIVE).scans == 10
    last = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
    bomb = PROGRESSIVE[:-2] + last * 2000 + PROGRESSIVE[-2:]
    assert walk_jpeg(bomb).scans == MAX_SCANS + 1
    assert not plain_jpeg(bomb)


@pytest.mark.parametrize("size", range(0, 600, 7))
def test_a_header_that_is_cut_is_an_error(size: int) -> None:
    with pytest.raises(JpegLayoutError):
        walk_jpeg(WHOLE[:size])


def test_the_walk_needs_no_torch() -> None:
    program = "import sys, pipeline.decoding.jpeg_walk; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
