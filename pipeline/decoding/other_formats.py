"""Names for picture files that are not read, so that a rejection can say what the file is."""

from __future__ import annotations

from tessera.pipeline.decoding.jpeg_walk import JpegLayout

_BEGINNINGS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II\xbc": "JPEG XR",
    b"\0\0\1\0": "an icon (ICO)",
    b"8BPS": "a Photoshop file",
    b"v/1\x01": "OpenEXR",
    b"\x8aMNG": "MNG",
    b"qoif": "QOI",
    b"%PDF": "PDF",
}
_BRANDS = {"AVIF": (b"avif", b"avis"), "HEIC": (b"heic", b"heix", b"hevc", b"hevx", b"heim")}
_SVG_WITHIN = 4096
"""Bytes in which an SVG's first element comes, behind prologue, comments and document type."""
_FRAMES = {
    0xC3: "lossless coding",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical coding"),
    **dict.fromkeys((0xC9, 0xCA), "arithmetic coding"),
    0xCB: "lossless arithmetic coding",
}


def name_other_format(data: bytes) -> str:
    """What a file is that is neither JPEG nor PNG nor WebP; empty where that is not known."""
    for beginning, name in _BEGINNINGS.items():
        if data.startswith(beginning):
            return name
    if data[4:8] == b"ftyp":
        brands = data[8 : 8 + min(256, int.from_bytes(data[:4], "big"))]
        for name, known in _BRANDS.items():
            if any(brand in brands for brand in known):
                return f"{name} ({data[8:12].decode('ascii', 'backslashreplace')})"
        brand = data[8:12].decode("ascii", "backslashreplace")
        return f"a file of the HEIF or MP4 family ({brand})"
    start = data[:_SVG_WITHIN].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"<") and b"<svg" in start and b"<html" not in start.lower():
        return "SVG"
    return ""


def name_other_jpeg(layout: JpegLayout) -> str:
    """What keeps a JPEG from being read; empty for the usual kinds."""
    if layout.frame in _FRAMES:
        return _FRAMES[layout.frame]
    if layout.precision != 8:
        return f"{layout.precision} bits a sample"
    if layout.components not in (1, 3, 4):
        return f"{layout.components} colours"
    return ""
