"""InfoNCE between queries and documents, over the batches of all ranks.

Shapes: W ranks, b pairs on each, B = W * b pairs in all, E length of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tessera.model.losses.ranks import Ranks


def info_nce(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor,
    sample_ids: Tensor,
    negative_ids: Tensor,
    *,
    scale: float,
    both_ways: bool,
    ranks: Ranks,
) -> Tensor:
    """Cross-entropy of finding each query's document among all documents and negatives.

    Supervised SimCSE (Gao et al. 2021, arXiv 2104.08821, equation 5) as LLM2CLIP uses it. What is
    of the query's own image is no candidate, but for its document.

    Args:
        queries: [b, E], of any length.
        documents: [b, E].
        negatives: [b, E] or [0, E].
        sample_ids: [b] whose image queries and documents are of.
        negative_ids: [b] or [0] whose image the negatives are of.
        scale: factor on the cosines.
        both_ways: add the way from documents to queries and take the mean of the two.
        ranks: who shares the batch; their mean of this is the loss of the whole batch.

    Returns:
        [] float32, mean over this rank's pairs.
    """
    queries, documents, negatives = (
        functional.normalize(vectors.float(), dim=-1) for vectors in (queries, documents, negatives)
    )
    all_ids = ranks.gather(sample_ids)
    own = torch.arange(len(queries), device=queries.device) + ranks.rank * len(queries)
    candidates, candidate_ids = ranks.gather_with_gradient(documents), all_ids
    if len(negatives):
        candidates = torch.cat([candidates, ranks.gather_with_gradient(negatives)])
        candidate_ids = torch.cat([all_ids, ranks.gather(negative_ids)])
    loss = _cross_entropy(queries, candidates, sample_ids, candidate_ids, own, scale)
    if both_ways:
        others = ranks.gather_with_gradient(queries)
        loss = (loss + _cross_entropy(documents, others, sample_ids, all_ids, own, scale)) / 2
    return loss


def _cross_entropy(
    rows: Tensor, candidates: Tensor, ids: Tensor, candidate_ids: Tensor, own: Tensor, scale: float
) -> Tensor:
    same_image = ids[:, None] == candidate_ids[None, :]
    same_image[torch.arange(len(own), device=own.device), own] = False
    logits = (scale * rows @ candidates.T).masked_fill(same_image, -torch.inf)
    return functional.cross_entropy(logits, own)
