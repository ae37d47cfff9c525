"""What a report shows: plain numbers, names and pictures, ready to be laid out.

Shape legend: L log lines, S crop side in pixels, N patches of an image (rows * cols), A anchors of
an image, H x W any picture size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.evaluation.page.charts import Numbers
from tessera.evaluation.scores import Score

Picture: TypeAlias = NDArray[np.uint8]
"""[H, W, 3] uint8, RGB."""
Result: TypeAlias = tuple["Picture | str", float, bool]
"""One retrieved thing: (picture or text, similarity score, whether it belongs to the query)."""
Direction: TypeAlias = Literal["text_to_image", "image_to_text"]


def _empty() -> Numbers:
    return np.zeros(0)


def _check_picture(picture: Picture, what: str) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"{what}: pictures are uint8 [H, W, 3], this one is {picture.dtype} "
            f"{list(picture.shape)}; undo the normalisation before handing it to the report"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSeries:
    """What was logged while training, one entry per log line; values may be NaN or infinite."""

    step: Numbers = field(default_factory=_empty)
    """[L] optimiser steps done."""
    samples: Numbers = field(default_factory=_empty)
    """[L] image-text pairs seen since the start of the run, over all ranks."""
    loss: Numbers = field(default_factory=_empty)
    """[L] training loss."""
    lr: Numbers = field(default_factory=_empty)
    """[L] learning rate."""
    logit_scale: Numbers = field(default_factory=_empty)
    """[L] factor on the cosine similarities (not its logarithm)."""
    step_s: Numbers = field(default_factory=_empty)
    """[L] seconds one step took, waiting for data included."""
    data_wait_s: Numbers = field(default_factory=_empty)
    """[L] seconds of `step_s` in which the model waited for data."""
    evaluations: Sequence[tuple[int, str, float]] = ()
    """(samples seen, name of the score, value) of evaluations during the run. A series within
    0 .. 1 whose name does not contain "loss" is shown in percent."""

    def __post_init__(self) -> None:
        """Raise ValueError when the columns differ in length."""
        columns = ("step", "samples", "loss", "lr", "logit_scale", "step_s", "data_wait_s")
        lengths = {name: len(getattr(self, name)) for name in columns}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"StepSeries columns differ in length: {lengths}; log NaN where a value is missing"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryItem:
    """One training image and what the mask left of it."""

    key: str
    """Key of the sample in its shard."""
    caption: str
    """Caption as drawn for this sample."""
    crop: Picture
    """[S, S, 3] uint8, the crop before masking."""
    visible: NDArray[np.bool_]
    """[N] True where the model saw the patch, row-major."""
    anchors: NDArray[np.integer[Any]]
    """[A] patch numbers of the anchors; empty when the mask has none."""
    cluster: NDArray[np.integer[Any]]
    """[N] number of the anchor whose cluster the patch is in, -1 where it is in none."""
    grid: tuple[int, int]
    """(rows, cols) of the patch grid."""
    tokens: Sequence[str] = ()
    """Text tokens that the text tower saw, as strings."""

    def __post_init__(self) -> None:
        """Raise ValueError when picture, grid and masks do not belong together."""
        _check_picture(self.crop, f"gallery item {self.key!r}")
        num_patches = self.grid[0] * self.grid[1]
        if self.visible.shape != (num_patches,) or self.cluster.shape != (num_patches,):
            raise ValueError(
                f"gallery item {self.key!r}: a grid of {self.grid[0]} x {self.grid[1]} has "
                f"{num_patches} patches, but "
                f"visible is {list(self.visible.shape)} and cluster {list(self.cluster.shape)}"
            )
        bounds = (
            self.cluster.max(initial=-1) < len(self.anchors),
            self.cluster.min(initial=-1) >= -1,
        )
        if not all(bounds) or not all(0 <= anchor < num_patches for anchor in self.anchors):
            raise ValueError(
                f"gallery item {self.key!r}: anchors must be patch numbers below {num_patches} and "
                f"cluster numbers -1 .. {len(self.anchors) - 1}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalExample:
    """One query and what the model ranked highest for it."""

    kind: Direction
    """Whether a text looks for pictures or a picture for texts."""
    results: Sequence[Result]
    """(picture or text, score, is right), best first; the first five are shown."""
    query_text: str = ""
    """The query of `text_to_image`."""
    query_image: Picture | None = None
    """[H, W, 3] uint8, the query of `image_to_text`."""
    query_key: str = ""
    """Key of the sample that the query comes from; may be empty."""
    answer: Picture | str | None = None
    """The right picture or text, shown when it is not among the results shown."""

    def __post_init__(self) -> None:
        """Raise ValueError when the query or a result is not of the kind announced."""
        query, result_type = (
            (self.query_image, str)
            if self.kind == "image_to_text"
            else (self.query_text, np.ndarray)
        )
        if query is None or not all(isinstance(found, result_type) for found, _, _ in self.results):
            raise ValueError(
                f"retrieval example {self.query_key!r}: {self.kind} needs its query and results of "
                "the other kind"
            )
        pictures = (self.query_image, self.answer, *(found for found, _, _ in self.results))
        for picture in pictures:
            if isinstance(picture, np.ndarray):
                _check_picture(picture, f"retrieval example {self.query_key!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """Everything on the page; it says what is missing. Only the first six fields are needed."""

    title: str
    """Heading of the page."""
    recipe: str
    """Name of the recipe."""
    command: str
    """Command line that repeats the run."""
    created: str
    """ISO 8601 date and time."""
    status: str
    """"finished", or "stopped at step k of n"."""
    config: Mapping[str, Any]
    """Nested configuration."""
    model: str = ""
    """Model name for the summary, such as ViT-B-16."""
    dataset: str = ""
    """Name of the training data for the summary."""
    device: str = ""
    """Device for the summary, such as "one H200" or "2 CPU cores"."""
    facts: Sequence[tuple[str, str]] = ()
    """(label, value) in the order to show: device, parameters, peak memory, versions."""
    steps: StepSeries = field(default_factory=StepSeries)
    """What was logged while training."""
    loss_at_chance: float | None = None
    """Loss of a model that knows nothing, drawn as a line; ln(batch) for the contrastive loss."""
    time_split: Sequence[tuple[str, float]] = ()
    """(what, seconds) for parts of the run that do not overlap."""
    data_facts: Sequence[tuple[str, str]] = ()
    """(label, value): samples, rejected by reason, replaced while training."""
    gallery: Sequence[GalleryItem] = ()
    """Images beside what the model saw of them; a dozen is plenty."""
    mask_ratios: Numbers = field(default_factory=_empty)
    """Share of patches hidden, 0 .. 1, one per image of a larger draw than the gallery."""
    retrieval: Sequence[RetrievalExample] = ()
    """Retrieval examples, right and wrong."""
    scores: Sequence[Score] = ()
    """Everything measured; the first labelled set and the first of pairs are headlines."""
    confusions: Sequence[tuple[str, str, int]] = ()
    """(true class, predicted class, images), the most frequent first."""
