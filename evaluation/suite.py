"""Everything that is measured of a model, on any number of sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a configuration must not wait for torch: what measures is imported to measure
    from tessera.evaluation.encoder import Encoder
    from tessera.evaluation.retrieval import RetrievalRun
    from tessera.evaluation.scores import Score


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is to be measured; an empty one measures nothing."""

    zero_shot: tuple[str, ...] = ()
    """Labelled sets: indexes, INDEX@SELECTION, or folders of class folders. Class names and
    templates lie beside the shards (docs/evaluation.md)."""
    retrieval: tuple[str, ...] = ()
    """Indexes of image-caption pairs, or INDEX@SELECTION."""
    linear_probe: tuple[str, ...] = ()
    """Pairs of labelled sets: TRAIN TEST TRAIN TEST ..."""
    few_shot: tuple[int, ...] = ()
    """Also train the probes on so many images of each class, such as 1 4 16."""
    few_shot_seeds: int = 3
    """Draws of these images."""
    sugarcrepe: tuple[str, ...] = ()
    """Folders of SugarCrepe's seven json files."""
    sugarcrepe_images: str = ""
    """Folder of COCO's val2017 pictures; empty is `val2017` in the folder of the json files."""
    winoground: tuple[str, ...] = ()
    """Folders with examples.jsonl and images/, as Winoground is laid out."""

    def __post_init__(self) -> None:
        """Raise ValueError where something does not make sense."""
        if len(self.linear_probe) % 2:
            raise ValueError("linear_probe takes pairs of sets: TRAIN TEST")
        if self.few_shot and not self.linear_probe:
            raise ValueError("few_shot needs the sets of linear_probe")
        if any(shots < 1 for shots in self.few_shot) or self.few_shot_seeds < 1:
            raise ValueError("few_shot and few_shot_seeds must be at least 1")

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """The pairs of `linear_probe`."""
        return zip(self.linear_probe[::2], self.linear_probe[1::2], strict=True)

    def check(self) -> list[str]:
        """Make sure that all data are there, before any work.

        Returns:
            What is allowed and probably not meant, one sentence each, for a person to read.

        Raises:
            FileNotFoundError: a set, its class names or its pictures are missing.
            ValueError: a set is damaged, has no labels, or too few images for a probe.
        """
        from tessera.evaluation.compositional import open_sugarcrepe, open_winoground
        from tessera.evaluation.labelled import open_labelled
        from tessera.evaluation.linear_probe import doubts_of_pair, open_pair
        from tessera.evaluation.retrieval import doubts_of_captions

        doubts: list[str] = []
        for place in self.zero_shot:
            open_labelled(place).prompts()
        for place in self.retrieval:
            doubts += doubts_of_captions(place)
        for train, test in self.pairs:
            doubts += doubts_of_pair(*open_pair(train, test, self.few_shot))
        for place in self.sugarcrepe:
            open_sugarcrepe(place, self.sugarcrepe_images)
        for place in self.winoground:
            open_winoground(place)
        return doubts

    def num_to_encode(self) -> int:
        """Pictures and texts that will be encoded; pictures that several measurements share once.

        Raises:
            As `check`.
        """
        from tessera.evaluation.compositional import open_sugarcrepe, open_winoground
        from tessera.evaluation.labelled import open_labelled
        from tessera.pipeline.index.dataset import open_dataset

        pictures: dict[str, int] = {}
        texts = 0
        for place in (*self.zero_shot, *self.linear_probe):
            labelled = open_labelled(place)
            pictures[labelled.place] = len(labelled.labels)
            if place in self.zero_shot:
                prompts = labelled.prompts()
                texts += len(prompts.class_names) * len(prompts.templates)
        for place in self.retrieval:
            dataset = open_dataset(place)
            pictures[place] = dataset.num_samples
            ids = dataset.sample_ids(0, dataset.num_samples)
            texts += len(dataset.index.captions().rows(ids)[0])
        for place in self.sugarcrepe:
            sugar = open_sugarcrepe(place, self.sugarcrepe_images)
            pictures[f"sugarcrepe {place}"] = len(set(sugar.images))
            texts += 2 * len(sugar.captions)
        for place in self.winoground:
            ground = open_winoground(place)
            pictures[f"winoground {place}"] = 2 * len(ground.images)
            texts += 2 * len(ground.captions)
        return sum(pictures.values()) + texts


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What was measured; empty but on rank 0."""

    scores: list[Score] = field(default_factory=list)
    """Every score of every set."""
    confusions: list[tuple[str, str, int]] = field(default_factory=list)
    """(true class, predicted class, images) of the labelled sets, each set's commonest first."""
    per_class: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    """By labelled set: (class, its images, those that zero-shot gets right)."""
    retrieval: list[RetrievalRun] = field(default_factory=list)
    """Features and ranks of each set of pairs."""


def evaluate(encoder: Encoder, suite: Suite) -> Outcome:
    """Measure everything; every process must call it, and rank 0 gets the scores.

    Pictures of a set that several measurements share are encoded once.

    Raises:
        FileNotFoundError: data are missing.
        ValueError: data are damaged.
    """
    from tessera.evaluation.compositional import (
        evaluate_sugarcrepe,
        evaluate_winoground,
        open_sugarcrepe,
        open_winoground,
    )
    from tessera.evaluation.linear_probe import evaluate_linear_probe
    from tessera.evaluation.retrieval import evaluate_retrieval
    from tessera.evaluation.zero_shot import evaluate_zero_shot

    outcome = Outcome()
    for place in suite.zero_shot:
        run = evaluate_zero_shot(encoder, place)
        if run:
            outcome.scores += run.scores
            outcome.confusions += run.confusions
            outcome.per_class[place] = run.per_class
    for place in suite.retrieval:
        found = evaluate_retrieval(encoder, place)
        if found:
            outcome.scores += found.scores
            outcome.retrieval.append(found)
    for train, test in suite.pairs:
        outcome.scores += (
            evaluate_linear_probe(
                encoder, train, test, shots=suite.few_shot, seeds=suite.few_shot_seeds
            )
            or []
        )
    for place in suite.sugarcrepe:
        data = open_sugarcrepe(place, suite.sugarcrepe_images)
        outcome.scores += evaluate_sugarcrepe(encoder, data) or []
    for place in suite.winoground:
        outcome.scores += evaluate_winoground(encoder, open_winoground(place)) or []
    return outcome
