"""Pairs of a batch whose captions are equal, which a contrastive loss takes for negatives.

Shapes: K captions, U tokens of all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def caption_keys(tokens: Tensor, offsets: Tensor) -> Tensor:
    """A number for each caption: equal for equal tokens, and otherwise different.

    Two different captions share a number with a probability of about 2**-64. Everything stays on
    the tokens' device, and nothing is read back.

    Args:
        tokens: [U] int32.
        offsets: [K+1] int32, caption k owns tokens[offsets[k]:offsets[k+1]].

    Returns:
        [K] int64.
    """
    places = torch.arange(len(tokens), device=tokens.device)
    captions = torch.bucketize(places, offsets[1:], right=True)
    # At most 255 tokens a caption, so token and place together are one number below 2**32.
    words = _mix(tokens.long() << 16 | (places - offsets[captions]))
    return tokens.new_zeros(len(offsets) - 1, dtype=torch.int64).index_add_(0, captions, words)


def repeated_share(keys: Tensor) -> Tensor:
    """[] float32, share of the captions that are equal to another one, from `caption_keys`."""
    ordered = keys.sort().values
    equal = ordered[1:] == ordered[:-1]
    no = equal.new_zeros(1)
    return (torch.cat((equal, no)) | torch.cat((no, equal))).float().mean()


def _mix(words: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 products wrap around as unsigned ones do."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        words = (words ^ (words >> shift & (1 << 64 - shift) - 1)) * factor
    return words ^ (words >> 31 & (1 << 33) - 1)
