"""The mask of a run, as it is written in a recipe or on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tessera.pipeline.masking.strategy import MaskStrategy

ClusterMode = Literal["budget", "threshold", "topk", "fill"]
"""What decides how much is dropped, as `ClusterMask` explains."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which patches are hidden from the model in training. Evaluation hides none."""

    kind: Literal["none", "random", "grid", "block", "cluster", "edge_aware", "kmeans"] = "cluster"
    """Strategy: none (CLIP), random (FLIP), grid and block (CLIPA), cluster (Cluster Masking),
    edge_aware (after CLIP-PGS; takes all settings of cluster), kmeans (Cluster Masking's
    ablation)."""
    mask_ratio: float = 0.5
    """Share of patches dropped, 0 to 1; not used by kind none."""
    grid: tuple[int, int] | None = None
    """grid, block, edge_aware: (rows, columns) of patches in an image; left out, the image is
    square."""
    mode: ClusterMode | None = None
    """cluster: budget (exact over each group of images), threshold (fixed similarity), topk (the
    same count in every image) or fill (the released code's padding); None is threshold where a
    threshold is given, else budget."""
    anchor_ratio: float = 0.03
    """cluster: share of an image's patches drawn as anchors; CLIP-PGS takes 0.05."""
    min_mask_ratio: float = 0.3
    """cluster: share of each image's patches dropped at least, 0 to mask_ratio; fill drops exactly
    this share; not used by topk."""
    threshold: float | None = None
    """cluster: similarity above which patches are dropped, -1 to 1; only modes threshold and fill.
    None: threshold finds it from the first batches, fill takes mask_ratio as the released code."""
    group_size: int = 0
    """cluster, budget: consecutive images that share a budget. It divides the batch of a rank, and
    masks do not depend on the number of ranks. 0: the largest number up to 16 that cuts the global
    batch into 8 equal groups or more."""
    embedding_first: float = 0.0
    """cluster: weight of the patch embeddings' similarity beside that of pixels at the first step,
    0 to 1; changes linearly over the run."""
    embedding_last: float = 0.0
    """cluster: the same at the last step. Both 0: pixels alone."""
    embedding_every: int = 100
    """cluster: steps after which the mask takes over the model's current patch projection; no
    batch is made ahead of that, files are read ahead all the same."""
    candidate_ratio: float = 0.5
    """edge_aware: share of an image's patches that may be anchors, those with the weakest edges."""
    num_clusters: int = 8
    """kmeans: clusters of an image."""

    def __post_init__(self) -> None:
        self.build()

    @property
    def uses_embedding(self) -> bool:
        """Whether the mask wants to be told the model's patch projection."""
        return max(self.embedding_first, self.embedding_last) > 0

    def build(self) -> MaskStrategy:
        """The strategy itself.

        Raises:
            ValueError: a value is out of its range or unknown, or belongs to another kind.
        """
        from tessera.pipeline.masking.blind import BlockMask, GridMask, NoMask, RandomMask
        from tessera.pipeline.masking.cluster import ClusterMask
        from tessera.pipeline.masking.edge_aware import EdgeAwareMask
        from tessera.pipeline.masking.kmeans import KMeansMask

        self._check_kind()
        builders: dict[str, Callable[[], MaskStrategy]] = {
            "none": NoMask,
            "random": lambda: RandomMask(self.mask_ratio),
            "grid": lambda: GridMask(self.mask_ratio, grid=self.grid),
            "block": lambda: BlockMask(self.mask_ratio, grid=self.grid),
            "kmeans": lambda: KMeansMask(self.mask_ratio, self.num_clusters),
            "cluster": lambda: ClusterMask(**self._cluster_settings()),
            "edge_aware": lambda: EdgeAwareMask(
                **self._cluster_settings(), candidate_ratio=self.candidate_ratio, grid=self.grid
            ),
        }
        if self.kind not in builders:
            raise ValueError(f"unknown mask kind {self.kind!r}: {', '.join(builders)}")
        return builders[self.kind]()

    def _cluster_settings(self) -> dict[str, Any]:
        names = (
            "anchor_ratio", "mask_ratio", "min_mask_ratio", "threshold", "mode", "group_size",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _check_kind(self) -> None:
        clusters = ("cluster", "edge_aware")
        owners = {
            "mode": clusters,
            "threshold": clusters,
            "group_size": clusters,
            "embedding_first": clusters,
            "embedding_last": clusters,
            "candidate_ratio": ("edge_aware",),
            "grid": ("grid", "block", "edge_aware"),
        }
        shares = (self.embedding_first, self.embedding_last)
        if not all(0 <= share <= 1 for share in shares) or self.embedding_every < 1:
            raise ValueError(
                f"embedding_first and embedding_last lie between 0 and 1 and embedding_every is at "
                f"least 1, got {shares[0]}, {shares[1]} and {self.embedding_every}"
            )
        for name, kinds in owners.items():
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default and self.kind not in kinds:
                raise ValueError(
                    f"mask {name} belongs to kind {' or '.join(kinds)}, not {self.kind}"
                )
