"""64-bit hashes of keys, URLs and other values: the same on every machine and for ever.

BLAKE2b of the value's bytes: a text as UTF-8, a whole number in decimal digits, a hash as it is.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.selection.values import Numbers, Truth, Values

_WORD = 8


def hash_values(values: Values, purpose: str, seed: int = 0) -> NDArray[np.uint64]:
    """Hash every value.

    Args:
        values: texts, byte strings or whole numbers; a missing one hashes like an empty text.
        purpose: at most 16 ASCII characters; draws for different purposes are independent.
        seed: 0 .. 2**64 - 1.

    Returns:
        [C] uint64: the digest's 8 bytes, read as a little-endian number.

    Raises:
        TypeError: the values are fractions or conditions.
    """
    salt, person = seed.to_bytes(_WORD, "little"), purpose.encode()
    digests = b"".join(
        [
            blake2b(raw, digest_size=_WORD, salt=salt, person=person).digest()
            for raw in _raw_bytes(values)
        ]
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)


def _raw_bytes(values: Values) -> list[bytes]:
    if isinstance(values, Numbers) and values.data.dtype.kind in "iu":
        pairs = zip(values.data.tolist(), values.known.tolist(), strict=True)
        return [b"%d" % number if known else b"" for number, known in pairs]
    if not isinstance(values, Numbers | Truth):
        return [raw or b"" for raw in values.cast(pa.large_binary()).to_pylist()]
    raise TypeError("only texts, hashes and whole numbers can be hashed")
