"""What the page of a run shows: plain numbers, names and pictures.

Shape legend: H x W any picture size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from tessera.evaluation.scores import Score
from tessera.report.charts import Numbers
from tessera.report.page import Picture
from tessera.report.pictures import GalleryItem, check_picture
from tessera.report.series import StepSeries, no_numbers

Result: TypeAlias = tuple["Picture | str", float, bool]
"""One retrieved thing: (picture or text, similarity score, whether it belongs to the query)."""
Direction: TypeAlias = Literal["text_to_image", "image_to_text"]
NUM_RESULTS = 5


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
        of_image = self.kind == "image_to_text"
        query, kind = (self.query_image, str) if of_image else (self.query_text, np.ndarray)
        if query is None or not all(isinstance(found, kind) for found, _, _ in self.results):
            raise ValueError(
                f"retrieval example {self.query_key!r}: {self.kind} needs its query and results of "
                "the other kind"
            )
        for picture in (self.query_image, self.answer, *(found for found, _, _ in self.results)):
            if isinstance(picture, np.ndarray):
                check_picture(picture, f"retrieval example {self.query_key!r}")

    @property
    def first_right(self) -> int | None:
        """Rank of the right answer among the results shown, from 1."""
        shown = enumerate(self.results[:NUM_RESULTS], 1)
        return next((rank for rank, result in shown if result[2]), None)


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
    """(label, value) in the order to show: device, parameters, peak memory."""
    versions: Sequence[tuple[str, str]] = ()
    """(library, version), folded away."""
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
    mask_ratios: Numbers = field(default_factory=no_numbers)
    """Share of patches hidden, 0 .. 1, one per image of a larger draw than the gallery."""
    retrieval: Sequence[RetrievalExample] = ()
    """Retrieval examples, right and wrong."""
    scores: Sequence[Score] = ()
    """Everything measured; the first labelled set and the first of pairs are headlines."""
    confusions: Sequence[tuple[str, str, int]] = ()
    """(true class, predicted class, images), the most frequent first."""
