"""What a decoder is: image files and crop windows in, small square images out.

Legend: B images, S side of the output in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

DaliGraph = Literal[
    "window", "window-cuda", "whole", "whole-cuda",
    "window-repeat", "window-repeat-cuda", "whole-repeat", "whole-repeat-cuda",
]  # fmt: skip
"""How DALI is asked for a window: to decode no more than it, or the whole picture and cut it out;
with the colours of subsampled pictures interpolated, or repeated from pixel to pixel; on the GPU's
JPEG engine where it has one, or by nvJPEG's CUDA decoder alone. In the order of preference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """Images of one call and what went wrong with some of them."""

    images: Tensor
    """[B, S, S, 3] uint8 RGB, on the decoder's device; black where decoding failed."""
    failures: dict[int, str]
    """Place in the call of each image that could not be decoded, with the reason."""
    fallback: str = ""
    """Why the whole call was left to another decoder; empty if it was not."""


class Decoder(Protocol):
    """Decodes windows of pictures; one bad picture never spoils the others."""

    @property
    def name(self) -> str:
        """What decodes, for statistics and logs: `turbo`, `pil`, `dali-cpu`, `dali-cuda:0`."""
        ...

    def decode(
        self,
        encoded: Sequence[bytes],
        windows: NDArray[np.int32],
        plain: NDArray[np.int8] | None = None,
    ) -> Decoded:
        """Decode, crop and resize.

        Args:
            encoded: B files (JPEG, PNG, WebP).
            windows: [B, 4] int32 (y, x, height, width) in the upright picture.
            plain: [B] 1 where the index found a plain JPEG (`Index.plain`), so that a look at its
                header is enough; anything else has the file looked at as a whole.
        """
        ...
