"""The compiled window decoder: jpeg_window.c over the libjpeg-turbo that Pillow's wheel brings."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import PIL

from tessera.pipeline.native import CompilationError, load_library

_FOLDER = Path(__file__).parent
_SOURCES = (
    "jpeg_window.c",
    "baseline.h",
    "bicubic.h",
    "huffman.h",
    "libjpeg_abi.h",
    "samples.h",
)


@cache
def load_jpeg_window() -> ctypes.CDLL:
    """Load the library, and compile it first where that was not yet done.

    Raises:
        CompilationError: no compiler, no libjpeg-turbo of the right kind, or no folder to write to.
    """
    loaded = load_library([_FOLDER / name for name in _SOURCES], [find_libjpeg()])
    loaded.tessera_decode.restype = None
    loaded.tessera_decode.argtypes = [
        ctypes.c_void_p,  # pointers to B files
        ctypes.c_void_p,  # [B] int64 sizes
        ctypes.c_void_p,  # [B, 4] int32 windows
        ctypes.c_int,  # B
        ctypes.c_int,  # S
        ctypes.c_int,  # threads
        ctypes.c_void_p,  # [B, S, S, 3] uint8 images, written
        ctypes.c_void_p,  # [B] int32 status, written
        ctypes.c_void_p,  # [B, 200] char reasons, written
    ]
    return loaded


def find_libjpeg() -> Path:
    """The libjpeg-turbo to build against: the one in Pillow's wheel.

    Raises:
        CompilationError: Pillow is not from a wheel, or this is not 64-bit Linux.
    """
    folder = Path(PIL.__file__).parents[1] / "pillow.libs"
    found = sorted(folder.glob("libjpeg-*.so.62*"))
    if not found:
        raise CompilationError(
            f"no libjpeg-turbo in {folder} (install Pillow as a wheel, with pip, on 64-bit Linux)"
        )
    return found[0]
