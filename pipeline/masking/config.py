"""The mask of a run, as it is written in a recipe or on the command line. Imports no torch.

A new kind of mask is a class in a file of this folder and an entry in `KINDS`; docs/pipeline.md
("Write a mask") shows one.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tessera.pipeline.masking.strategy import MaskStrategy

ClusterMode = Literal["budget", "threshold", "topk", "fill"]
"""What decides how much is dropped, as `ClusterMask` explains."""

_CLUSTER = ("anchor_ratio", "mask_ratio", "min_mask_ratio", "threshold", "mode", "group_size")
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("blind.NoMask", ()),
    "random": ("blind.RandomMask", ("mask_ratio",)),
    "grid": ("blind.GridMask", ("mask_ratio", "grid")),
    "block": ("blind.BlockMask", ("mask_ratio", "grid")),
    "cluster": ("cluster.ClusterMask", _CLUSTER),
    "edge_aware": ("edge_aware.EdgeAwareMask", (*_CLUSTER, "candidate_ratio", "grid")),
    "kmeans": ("kmeans.KMeansMask", ("mask_ratio", "num_clusters")),
}
"""Of each kind: the file and class of its strategy, and the settings that it takes."""

_OF_CLUSTERS = ("embedding_first", "embedding_last")
_OF_SOME_KINDS = ("mode", "threshold", "group_size", "candidate_ratio", "grid", *_OF_CLUSTERS)
"""Settings that are refused when they are set for a kind that does not take them."""


@dataclass(frozen=True)
class ClusterSettings:
    """What decides which clusters are dropped; the modes are those of `ClusterMask`."""

    anchor_ratio: float = 0.03
    """cluster: share of an image's patches drawn as anchors, rounded up (6 of 196); CLIP-PGS takes
    0.05."""
    mask_ratio: float = 0.5
    """Share of patches dropped, 0 to 1; anchors are among them. Not used by kind none."""
    min_mask_ratio: float = 0.3
    """cluster: share of each image's patches dropped at least, 0 to mask_ratio (the paper's beta);
    fill drops exactly this share; not used by topk."""
    threshold: float | None = None
    """cluster: similarity above which patches are dropped, -1 to 1; only modes threshold and fill.
    None: threshold finds it from the first batches, fill takes mask_ratio as the released code."""
    mode: ClusterMode | None = None
    """cluster: budget (exact over each group of images), threshold (fixed similarity), topk (the
    same count in every image) or fill (the released code's padding); None is threshold where a
    threshold is given, else budget."""
    group_size: int = 0
    """cluster, budget: consecutive images that share a budget. It divides the batch of a rank, and
    masks do not depend on the number of ranks. 0: the largest number up to 16 that cuts the global
    batch into 8 equal groups or more."""

    def __post_init__(self) -> None:
        self.check_clusters()

    @property
    def resolved_mode(self) -> str:
        """The mode, decided."""
        return self.mode or ("budget" if self.threshold is None else "threshold")

    def check_clusters(self) -> None:
        """Refuse what no cluster mask can do.

        Raises:
            ValueError: a value is out of its range, or belongs to another mode.
        """
        for name in ("anchor_ratio", "mask_ratio", "min_mask_ratio"):
            check_ratio(name, getattr(self, name))
        if self.anchor_ratio == 0:
            raise ValueError("anchor_ratio must be above 0: without anchors there is no cluster")
        mode = self.resolved_mode
        if mode not in ("budget", "threshold", "topk", "fill"):
            raise ValueError(f"unknown mode {mode!r}: budget, threshold, topk or fill")
        if self.threshold is not None and mode in ("budget", "topk"):
            raise ValueError(f"mode {mode} has no threshold: leave it out, or take mode threshold")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is a correlation, -1 to 1, got {self.threshold}")
        if self.group_size < 0 or (self.group_size and mode != "budget"):
            raise ValueError("group_size is 0 or more, and only mode budget has groups")
        shares_bounds = mode in ("budget", "threshold") and self.threshold is None
        if shares_bounds and self.min_mask_ratio > self.mask_ratio:
            raise ValueError(
                f"min_mask_ratio {self.min_mask_ratio} (of each image) is above mask_ratio "
                f"{self.mask_ratio} (of the batch): lower the first or raise the second"
            )


@dataclass(frozen=True, kw_only=True)
class MaskConfig(ClusterSettings):
    """Which patches are hidden from the model in training. Evaluation hides none."""

    kind: str = "cluster"
    """Strategy: none (CLIP), random (FLIP), grid or block (CLIPA), cluster (Cluster Masking),
    edge_aware (after CLIP-PGS; takes all settings of cluster), kmeans (Cluster Masking's
    ablation)."""
    grid: tuple[int, int] | None = None
    """grid, block, edge_aware: (rows, columns) of patches in an image; left out, the image is
    square."""
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
        if self.kind not in KINDS:
            raise ValueError(f"unknown mask kind {self.kind!r}: {', '.join(KINDS)}")
        self._check_kind()
        if "anchor_ratio" in self._settings:
            self.check_clusters()
        elif "mask_ratio" in self._settings:
            check_ratio("mask_ratio", self.mask_ratio)
        if self.kind == "grid":
            check_grid_ratio(self.mask_ratio)
        check_num_clusters(self.num_clusters)
        check_candidate_ratio(self.candidate_ratio)

    @property
    def uses_embedding(self) -> bool:
        """Whether the mask wants to be told the model's patch projection."""
        return max(self.embedding_first, self.embedding_last) > 0

    def build(self) -> MaskStrategy:
        """The strategy itself."""
        file, name = KINDS[self.kind][0].split(".")
        strategy = getattr(import_module(f"tessera.pipeline.masking.{file}"), name)
        return strategy(**{setting: getattr(self, setting) for setting in self._settings})

    @property
    def _settings(self) -> tuple[str, ...]:
        return KINDS[self.kind][1]

    def _check_kind(self) -> None:
        first, last = self.embedding_first, self.embedding_last
        if not (0 <= first <= 1 and 0 <= last <= 1) or self.embedding_every < 1:
            raise ValueError(
                f"embedding_first and embedding_last lie between 0 and 1 and embedding_every is at "
                f"least 1, got {first}, {last} and {self.embedding_every}"
            )
        for name in _OF_SOME_KINDS:
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default and self.kind not in kinds_with(name):
                raise ValueError(
                    f"mask {name} belongs to kind {' or '.join(kinds_with(name))}, not {self.kind}"
                )


def kinds_with(setting: str) -> list[str]:
    """The kinds of mask that take a setting."""
    name = "anchor_ratio" if setting in _OF_CLUSTERS else setting
    return [kind for kind, (_, settings) in KINDS.items() if name in settings]


def check_ratio(name: str, ratio: float) -> None:
    """Refuse a share that would hide nothing sensible.

    Raises:
        ValueError: `ratio` is outside 0 <= ratio < 1.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"{name} is the share of patches dropped: 0 <= {name} < 1, got {ratio}")


def check_grid_ratio(mask_ratio: float) -> int:
    """Side k of the window of which a grid mask keeps one patch.

    Raises:
        ValueError: the ratio is neither 0.5 (a checkerboard) nor 1 - 1/k**2.
    """
    window = max(1, round((1 / (1 - mask_ratio)) ** 0.5))
    if mask_ratio != 0.5 and abs(1 - 1 / window**2 - mask_ratio) > 1e-3:
        raise ValueError(
            f"a grid mask drops 0.5, 0.75, 0.8889 or another 1 - 1/k**2, not {mask_ratio}"
        )
    return window


def check_num_clusters(num_clusters: int) -> None:
    """Refuse a k-means of fewer than two clusters.

    Raises:
        ValueError: it is.
    """
    if num_clusters < 2:
        raise ValueError(f"k-means needs 2 clusters or more, got {num_clusters}")


def check_candidate_ratio(candidate_ratio: float) -> None:
    """Refuse a share of candidates without one, or above all.

    Raises:
        ValueError: `candidate_ratio` is outside 0 < candidate_ratio <= 1.
    """
    if not 0 < candidate_ratio <= 1:
        raise ValueError(f"candidate_ratio is above 0 and at most 1, got {candidate_ratio}")
