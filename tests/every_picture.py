"""Pictures of every kind that was ever read otherwise by one part than by another, and bad ones.

`SOUND` is served, alike by all; `REFUSED` is refused, by all and for the same fault. All are drawn
here from numbers.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tessera.pipeline.decoding.picture import Fault
from tests.decoder_pictures import encode, photo, with_orientation

WIDTH, HEIGHT = 97, 70
"""Of the upright picture, in pixels."""


_DAMAGE = (Fault.TRUNCATED, Fault.DAMAGED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bad:
    """A file that must be refused."""

    data: bytes
    faults: tuple[Fault, ...]
    """Any of which may be named: damage shows in more than one way."""
    says: str = ""
    """What the reason must hold."""
    in_header: bool = True
    """Whether the header shows it, so that it is refused without decoding."""
    in_window: bool = True
    """Whether a decoder that stops behind its window can see it."""


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def after_start(data: bytes, extra: bytes) -> bytes:
    """The JPEG with bytes behind its first segment."""
    end = 4 + int.from_bytes(data[4:6], "big")
    return data[:end] + extra + data[end:]


def tiff(orientation: int) -> bytes:
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    image: Image.Image, *, before: bytes = b"", behind: bytes = b"", **options: object
) -> bytes:
    """A PNG with chunks before and behind its pixels."""
    data = encode(image, "PNG", **options)
    first, last = data.index(b"IDAT") - 4, len(data) - 12
    return data[:first] + before + data[first:last] + behind + data[last:]


def webp(image: Image.Image, orientation: int, *, odd: bool, prefix: bytes) -> bytes:
    """A lossless WebP with an EXIF chunk, behind pixels of an odd or even number of bytes."""
    data = encode(image, "WEBP", lossless=True)
    kind, length = struct.unpack_from("<4sI", data, 12)
    pixels = data[20 : 20 + length]
    pixels += b"\0" if len(pixels) % 2 != odd else b""
    exif = prefix + tiff(orientation)
    size = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    body = b"WEBP"
    for name, content in ((b"VP8X", bytes((8, 0, 0, 0)) + size), (kind, pixels), (b"EXIF", exif)):
        body += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def drawing(mode: str = "RGBA") -> Image.Image:
    """A dark bar on nothing; what is hidden is black."""
    image = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    image.paste((9, 9, 9, 255), (10, 20, 80, 40))
    return image.convert(mode)


def _keyed(mode: str, key: object) -> bytes:
    """A dark bar on black, where black is declared transparent."""
    image = Image.new(mode, (WIDTH, HEIGHT), 0)
    image.paste((9, 9, 9) if mode == "RGB" else 9, (10, 20, 80, 40))
    return encode(image, "PNG", transparency=key)


def _palette() -> bytes:
    image = Image.new("P", (WIDTH, HEIGHT), 0)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.paste(1, (10, 20, 80, 40))
    return encode(image, "PNG", transparency=0)


def _scan_bomb(scans: int) -> bytes:
    """A progressive JPEG with its second scan repeated."""
    data = encode(photo(WIDTH, HEIGHT), progressive=True)
    first = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    second = data.index(b"\xff\xda", first + 2)
    return data[:second] + data[first:second] * scans + data[second:]


PHOTO = photo(WIDTH, HEIGHT, seed=1)
TURNED = PHOTO.transpose(Image.Transpose.ROTATE_90)
"""What orientation 6 turns to PHOTO."""
JPEG = encode(PHOTO, subsampling=2)
OTHER_JPEG = encode(photo(WIDTH, HEIGHT, seed=7), subsampling=2)
TURNED_JPEG = with_orientation(encode(TURNED, subsampling=2), 6)
PROGRESSIVE = encode(PHOTO, progressive=True)
_VIDEO = b"\0\0\0\x18ftypmp42" + random.Random(1).randbytes(200_000) + b"\xff\xda"
_EXIF_CHUNK = png_chunk(b"eXIf", tiff(6))

SOUND: dict[str, bytes] = {
    "JPEG 4:2:0": JPEG,
    "JPEG 4:2:2": encode(PHOTO, subsampling=1),
    "JPEG 4:4:4": encode(PHOTO, subsampling=0),
    "JPEG progressive": PROGRESSIVE,
    "JPEG with restarts": encode(PHOTO, restart_marker_blocks=2),
    "JPEG grey": encode(PHOTO.convert("L")),
    "JPEG CMYK": encode(PHOTO.convert("CMYK")),
    "JPEG stored as RGB": encode(PHOTO, keep_rgb=True),
    "JPEG turned": TURNED_JPEG,
    "JPEG turned, big-endian": with_orientation(encode(TURNED), 6, "MM"),
    "JPEG turned, stray bytes before EXIF": after_start(
        encode(TURNED), b"\n" * 5 + segment(0xE1, b"Exif\0\0" + tiff(6))
    ),
    "JPEG with two EXIF blocks": after_start(TURNED_JPEG, segment(0xE1, b"Exif\0\0" + tiff(3))),
    "JPEG with a thumbnail": encode(PHOTO, exif=b"Exif\0\0" + JPEG),
    "JPEG with stray bytes between segments": after_start(JPEG, b"\n" * 7),
    "JPEG with fill bytes": after_start(JPEG, b"\xff" * 3),
    "JPEG with a comment": after_start(JPEG, segment(0xFE, b"a comment")),
    "JPEG with an unknown JFIF version": JPEG.replace(b"JFIF\0\1", b"JFIF\0\7"),
    "JPEG with odd scan parameters": JPEG.replace(b"\0\x3f\0", b"\0\0\0", 1),
    "JPEG padded before its end": JPEG[:-2] + bytes(9) + JPEG[-2:],
    "JPEG padded behind its end": JPEG + bytes(3000),
    "JPEG with a video behind it": JPEG + _VIDEO,
    "JPEG with another behind it": JPEG + OTHER_JPEG,
    "JPEG with half of another behind it": PROGRESSIVE + OTHER_JPEG[:900],
    "PNG": png(PHOTO),
    "PNG palette": png(PHOTO.convert("P")),
    "PNG grey": png(PHOTO.convert("L")),
    "PNG of 1 bit": png(PHOTO.convert("1")),
    "PNG RGBA": png(drawing()),
    "PNG grey with alpha": png(drawing("LA")),
    "PNG palette with alpha": _palette(),
    "PNG with a transparent colour": _keyed("RGB", (0, 0, 0)),
    "PNG with a transparent grey": _keyed("L", 0),
    "PNG turned": png(TURNED, before=_EXIF_CHUNK),
    "PNG turned behind its pixels": png(TURNED, behind=_EXIF_CHUNK),
    "PNG turned, with a prefix": png(TURNED, behind=png_chunk(b"eXIf", b"Exif\0\0" + tiff(6))),
    "PNG with a bad eXIf chunk": png(PHOTO, behind=_EXIF_CHUNK[:-4] + b"sums"),
    "PNG animated": encode(PHOTO, "PNG", save_all=True, append_images=[drawing("RGB")]),
    "PNG animated, of which no frame is its picture": encode(
        PHOTO, "PNG", save_all=True, append_images=[drawing("RGB")] * 2, default_image=True
    ),
    "WebP": encode(PHOTO, "WEBP", quality=95),
    "WebP lossless": encode(PHOTO, "WEBP", lossless=True),
    "WebP RGBA": encode(drawing(), "WEBP", lossless=True),
    "WebP animated": encode(
        PHOTO, "WEBP", save_all=True, append_images=[drawing("RGB")], lossless=True
    ),
    **{
        f"WebP turned, {name}": webp(TURNED, 6, odd=odd, prefix=prefix)
        for name, odd, prefix in (
            ("prefix", False, b"Exif\0\0"), ("odd", True, b""), ("even", False, b""),
        )
    },
}  # fmt: skip
"""Files that are served, with the upright picture WIDTH x HEIGHT."""
TRANSPARENT = [name for name in SOUND if "alpha" in name or "RGBA" in name or "transp" in name]
"""Those that show `drawing` on white; all others show PHOTO, in colours or grey."""


def _jpegs_with_missing_parts() -> dict[str, Bad]:
    found: dict[str, Bad] = {}
    for kind, whole, other in (
        ("", JPEG, OTHER_JPEG),
        ("progressive, ", PROGRESSIVE, encode(photo(WIDTH, HEIGHT, seed=7), progressive=True)),
    ):
        half, end = len(whole) * 2 // 3, whole[-2:]
        tails = {
            "cut, with an end": end,
            "a zero tail": bytes(len(whole) - half - 2) + end,
            "a tail of HTML": b"<html>not found</html>" * 90 + end,
            "a hole": whole[half + 300 :],
            "another's half": other[len(other) * 3 // 4 :],
        }
        for name, tail in tails.items():
            found[f"JPEG, {kind}{name}"] = Bad(
                data=whole[:half] + tail, faults=_DAMAGE, in_header=False
            )
    return found


def _of(data: bytes, frame: int) -> bytes:
    return data.replace(b"\xff\xc0", bytes((0xFF, frame)))


ARITHMETIC = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043001b12141714111b1716171e1c1b2028422b282525"
    "28513a3d3042605565645f555d5b6a7899816a7190735b5d85b586909ea3abadab6780bcc9baa6c799a8aba4ff"
    "c9000b080010001001011100ffcc000600101005ffda0008010100003f00c8efd76da89789b410eca712285c72"
    "ab341fd38c02abb75aa30f07eae1286172689d965297fa49c69474a16af08d239a8bd8c59affd9"
)
"""16x16 grey; Pillow reads such files but does not write them."""
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'
_PROLOGUE = b'<?xml version="1.0"?>\n<!-- drawn by hand -->\n<!DOCTYPE svg>\n'


def _other(says: str, data: bytes) -> Bad:
    return Bad(data=data, faults=(Fault.UNSUPPORTED,), says=says)


REFUSED: dict[str, Bad] = {
    "empty": Bad(data=b"", faults=(Fault.EMPTY,)),
    "a web page": Bad(data=b"<html>not found</html>" * 50, faults=(Fault.NOT_AN_IMAGE,)),
    "a web page with a drawing": Bad(
        data=b"<!doctype html><html><body>" + _SVG, faults=(Fault.NOT_AN_IMAGE,)
    ),
    "zeros": Bad(data=bytes(5000), faults=(Fault.NOT_AN_IMAGE,)),
    "GIF": _other("GIF", encode(PHOTO, "GIF")),
    "BMP": _other("BMP", encode(PHOTO, "BMP")),
    "TIFF": _other("TIFF", encode(PHOTO, "TIFF")),
    "BigTIFF": _other("BigTIFF", encode(PHOTO, "TIFF", big_tiff=True)),
    "AVIF": _other("AVIF", encode(PHOTO, "AVIF")),
    "HEIC": _other("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)),
    "JPEG 2000": _other("JPEG 2000", encode(PHOTO, "JPEG2000")),
    "JPEG 2000 stream": _other("JPEG 2000", encode(PHOTO, "JPEG2000", no_jp2=True)),
    "JPEG XL": _other("JPEG XL", b"\xff\x0a" + bytes(99)),
    "JPEG XL in a box": _other("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)),
    "icon": _other("icon", encode(PHOTO, "ICO")),
    "PDF": _other("PDF", b"%PDF-1.7\n"),
    "SVG": _other("SVG", _SVG),
    "SVG with a prologue": _other("SVG", b"\xef\xbb\xbf" + _PROLOGUE + _SVG),
    "PNG of 16 bits": _other(
        "16 bits", encode(Image.fromarray(np.full((HEIGHT, WIDTH), 40_000, np.uint16)), "PNG")
    ),
    "JPEG of 12 bits": _other(
        "12 bits", _of(JPEG, 0xC1).replace(b"\xff\xc1\0\x11\x08", b"\xff\xc1\0\x11\x0c")
    ),
    "JPEG lossless": _other("lossless", _of(JPEG, 0xC3)),
    "JPEG hierarchical": _other("hierarchical", _of(JPEG, 0xC5)),
    "JPEG arithmetic": _other("arithmetic", ARITHMETIC),
    "JPEG without an end": Bad(
        data=JPEG[:-2], faults=(Fault.TRUNCATED,), says="end marker", in_window=False
    ),
    "JPEG cut": Bad(data=JPEG[: len(JPEG) // 2], faults=(Fault.TRUNCATED,), says="end marker"),
    "JPEG with a zero tail": Bad(
        data=JPEG[: len(JPEG) // 2] + bytes(2000), faults=(Fault.TRUNCATED,), says="end marker"
    ),
    "JPEG header cut": Bad(data=JPEG[:300], faults=(Fault.TRUNCATED,), says="header"),
    "JPEG without a frame": Bad(
        data=JPEG.replace(b"\xff\xc0", b"\xff\xfe"), faults=(Fault.TRUNCATED,), says="header"
    ),
    "JPEG of many scans": Bad(data=_scan_bomb(3000), faults=(Fault.TOO_LARGE,), says="scans"),
    **_jpegs_with_missing_parts(),
    "JPEG with much left over": Bad(
        data=JPEG[:-2] + bytes(500) + JPEG[-2:],
        faults=(Fault.DAMAGED,),
        in_header=False,
        in_window=False,
    ),
    "PNG cut": Bad(data=png(PHOTO)[:4000], faults=_DAMAGE, in_header=False),
    "PNG with damaged pixels": Bad(
        data=png(PHOTO).replace(png(PHOTO)[3000:3010], bytes(10)),
        faults=(Fault.DAMAGED,),
        in_header=False,
    ),
    "PNG header cut": Bad(data=png(PHOTO)[:20], faults=(Fault.TRUNCATED,)),
    "WebP cut": Bad(data=SOUND["WebP"][:900], faults=_DAMAGE, in_header=False),
}
