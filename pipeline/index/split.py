"""Parts of a set by the hash of a value: a key stays in its part whatever happens to the index.

The hash is BLAKE2b of the value's bytes, the same on every machine and for ever: of a text as
UTF-8, of a whole number in decimal digits, of a hash as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index.selections import check_name

_WORD = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A named share of a set."""

    name: str
    """Such as `train`."""
    share: Fraction
    """Of the whole, above 0."""


def parse_parts(words: Sequence[str]) -> list[Part]:
    """Parts from `NAME=SHARE`, such as `train=0.99 heldout=0.01`; shares are exact decimals.

    Raises:
        ValueError: a word is no such pair, a name comes twice, there is but one part, or the
            shares do not add up to 1.
    """
    parts = []
    for word in words:
        name, _, share = word.partition("=")
        check_name(name)
        try:
            parts.append(Part(name=name, share=Fraction(share)))
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"a part is written NAME=SHARE, such as heldout=0.01; got {word!r}"
            ) from None
    total = sum((part.share for part in parts), Fraction(0))
    if len({part.name for part in parts}) < max(2, len(parts)):
        raise ValueError(
            f"a split needs at least two parts of different names, got {' '.join(words)}"
        )
    if total != 1 or any(part.share <= 0 for part in parts):
        raise ValueError(f"shares must be above 0 and add up to 1; these make {float(total):g}")
    return parts


def part_numbers(hashes: NDArray[np.uint64], parts: Sequence[Part]) -> NDArray[np.int64]:
    """Which part each hash falls in: consecutive intervals of [0, 2**64), in the order given.

    Args:
        hashes: [R] uniformly spread 64-bit words.
        parts: shares that add up to 1.

    Returns:
        [R] places in `parts`.
    """
    edges, upto = [], Fraction(0)
    for part in parts[:-1]:
        upto += part.share
        edges.append(int(upto * 2**64))
    return np.searchsorted(np.array(edges, dtype=np.uint64), hashes, side="right")


def hash_values(values: pa.Array, purpose: str, seed: int = 0) -> NDArray[np.uint64]:
    """Hash every value.

    Args:
        values: texts, byte strings or whole numbers; a null hashes like an empty text.
        purpose: at most 16 ASCII characters; draws for different purposes are independent.
        seed: 0 .. 2**64 - 1.

    Returns:
        [R] uint64: the digest's 8 bytes, read as a little-endian number.
    """
    salt, person = seed.to_bytes(_WORD, "little"), purpose.encode()
    if pa.types.is_integer(values.type):
        values = values.cast(pa.string())
    raw = values.cast(pa.large_binary()).to_pylist()
    digests = [
        blake2b(each or b"", digest_size=_WORD, salt=salt, person=person).digest() for each in raw
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False)
