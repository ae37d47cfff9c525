"""Damages files: from single bits up to spliced halves, always the same for the same seed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

BLOCK_BYTES = 512
_HEAD_BYTES = 400
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_NASTY = (
    b"\0", b"\x1b[2J\x1b]0;title\x07", "\u202e\u2066\u200b\u200d\ufeff".encode(),
    b"\xff\xfe\xc0\x80", b"\xed\xa0\x80", b"<script>alert(1)</script>",
    b"../../../etc/passwd", b"/dev/zero", b'"', b"\\", b"{" * 40, b"[" * 3000, b"9" * 5000,
    b"1e999", b"NaN", b"-1", b"null", b"\\ud800", b"\r", b"\n", b"\t", b",", b"\xff\xd8\xff",
    b"PK\x03\x04", b"cos\nsystem\n(S'true'\ntR.",
)  # fmt: skip

Random = np.random.Generator
Repair = Callable[[bytes], bytes]


def mutated(files: Sequence[bytes], seed: int, number: int, repair: Repair | None = None) -> bytes:
    """The damaged file with this number.

    Args:
        files: sound files to start from.
        seed: of the whole run.
        number: of the input.
        repair: makes checksums right again; used on every other file, so that damage also gets
            behind them.
    """
    random = np.random.default_rng([seed, number])
    data = bytearray(files[int(random.integers(len(files)))])
    for _ in range(int(random.choice([1, 1, 1, 2, 4]))):
        change = _CHANGES[int(random.integers(len(_CHANGES)))]
        data = change(data, random, files)
    result = bytes(data)
    return repair(result) if repair and random.random() < 0.5 else result


def _place(data: bytearray, random: Random) -> int:
    """Half of all places lie at the start, where the headers are."""
    end = len(data) if random.random() < 0.5 else min(len(data), _HEAD_BYTES)
    return int(random.integers(end)) if end else 0


def _flip(data: bytearray, random: Random, _: Sequence[bytes]) -> bytearray:
    for _n in range(int(random.integers(1, 20)) if data else 0):
        data[_place(data, random)] ^= 1 << int(random.integers(8))
    return data


def _cut(data: bytearray, random: Random, _: Sequence[bytes]) -> bytearray:
    return data[: int(random.integers(len(data) + 1))]


def _overwrite(data: bytearray, random: Random, _: Sequence[bytes]) -> bytearray:
    start, count = _place(data, random), int(random.integers(1, 64))
    data[start : start + count] = random.bytes(len(data[start : start + count]))
    return data


def _number(data: bytearray, random: Random, _: Sequence[bytes]) -> bytearray:
    width = int(random.choice([1, 2, 4, 8]))
    value = _NUMBERS[int(random.integers(len(_NUMBERS)))] & ((1 << 8 * width) - 1)
    start = _place(data, random)
    raw = value.to_bytes(width, "little" if random.random() < 0.5 else "big")
    data[start : start + width] = raw[: len(data) - start]
    return data


def _insert(data: bytearray, random: Random, _: Sequence[bytes]) -> bytearray:
    start = _place(data, random)
    data[start:start] = _NASTY[int(random.integers(len(_NASTY)))]
    return data


def _repeat(data: bytearray, random: Random, _: Sequence[bytes]) -> bytearray:
    start, count = _place(data, random), int(random.integers(1, 2000))
    data[start:start] = data[start : start + count] * int(random.integers(1, 4))
    return data


def _remove(data: bytearray, random: Random, _: Sequence[bytes]) -> bytearray:
    start = _place(data, random)
    del data[start : start + int(random.integers(1, 600))]
    return data


def _splice(data: bytearray, random: Random, files: Sequence[bytes]) -> bytearray:
    other = files[int(random.integers(len(files)))]
    return data[: _place(data, random)] + other[int(random.integers(len(other) + 1)) :]


_CHANGES = (_flip, _flip, _cut, _overwrite, _number, _number, _insert, _repeat, _remove, _splice)


def png_checksums(data: bytes) -> bytes:
    """The file with a right CRC in every chunk that is there as a whole."""
    if not data.startswith(b"\x89PNG"):
        return data
    result, place = bytearray(data), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        result[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(result)


def tar_checksums(data: bytes) -> bytes:
    """The tar with a right checksum in every block that looks like a header."""
    result = bytearray(data)
    for start in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
        block = data[start : start + BLOCK_BYTES]
        if block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
            result[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(result)
