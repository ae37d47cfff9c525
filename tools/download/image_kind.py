"""What the first bytes of a file say: which kind of picture it is, or what it is instead."""

from __future__ import annotations

from tessera.tools.download.causes import Cause, RefusedError

_READ = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}
_TEXTS = {
    **dict.fromkeys((b"<!doctype html", b"<html", b"<head", b"<body", b"<script"), "HTML"),
    b"<?xml": "XML",
    b"<": "markup",
    b"%pdf": "PDF",
    b"{": "JSON",
    b"[": "JSON",
}
_UNREAD = {
    b"\0\0\1\0": "an icon",
    b"8BPS": "a Photoshop file",
    **dict.fromkeys((b"\0\0\0\x0cJXL ", b"\xff\x0a"), "JPEG XL"),
    **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG 2000"),
    b"II\xbc": "JPEG XR",
    b"v/1\x01": "OpenEXR",
    **dict.fromkeys((b"II+\0", b"MM\0+"), "BigTIFF"),
}


def image_kind(data: bytes) -> str:
    """The format by the first bytes; a URL's suffix and the server's Content-Type say nothing.

    Returns:
        jpeg, png, gif, webp, bmp, tiff or avif.

    Raises:
        RefusedError: no bytes, no picture, or a picture in a format that is not read.
    """
    if not data:
        raise RefusedError(Cause.EMPTY, "0 bytes")
    for magic, kind in _READ.items():
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"BM") and len(data) > 26 and data[6:10] == bytes(4):
        return "bmp"
    if data[4:8] == b"ftyp":
        brands = data[8 : 8 + min(256, int.from_bytes(data[:4], "big"))]
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        raise RefusedError(Cause.UNSUPPORTED_IMAGE, "HEIF or video, not AVIF")
    for magic, name in _UNREAD.items():
        if data.startswith(magic):
            raise RefusedError(Cause.UNSUPPORTED_IMAGE, name)
    raise RefusedError(Cause.NOT_AN_IMAGE, _what_else(data))


def _what_else(data: bytes) -> str:
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in start:
        return "SVG"
    for beginning, name in _TEXTS.items():
        if start.startswith(beginning):
            return name
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    return "text" if printable >= 0.9 * len(start) else "unknown bytes"
