"""Everything that is measured of a model, on any number of sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a configuration must not wait for torch: what measures is imported to measure
    from evaluation.encoder import Encoder
    from evaluation.report.data import (
        FewShotResult,
        LinearProbeResult,
        SugarCrepeResult,
        WinogroundResult,
    )
    from evaluation.retrieval import RetrievalRun
    from evaluation.zero_shot import ZeroShotRun


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
        from evaluation.compositional import open_sugarcrepe, open_winoground
        from evaluation.labelled import open_labelled
        from evaluation.linear_probe import doubts_of_pair, open_pair
        from evaluation.retrieval import doubts_of_captions

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


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What was measured; empty but on rank 0."""

    zero_shot: list[ZeroShotRun] = field(default_factory=list)
    """One for each labelled set."""
    retrieval: list[RetrievalRun] = field(default_factory=list)
    """One for each set of pairs."""
    linear_probe: list[LinearProbeResult] = field(default_factory=list)
    """One for each pair of sets."""
    few_shot: list[FewShotResult] = field(default_factory=list)
    """One for each pair of sets and number of shots."""
    sugarcrepe: list[SugarCrepeResult] = field(default_factory=list)
    """One for each folder."""
    winoground: list[WinogroundResult] = field(default_factory=list)
    """One for each folder."""

    def renamed(self, names: Mapping[str, str]) -> Outcome:
        """The same with other names of data sets, where `names` has one."""

        def rename(result: Any) -> Any:
            return replace(result, dataset=names.get(result.dataset, result.dataset))

        return Outcome(
            zero_shot=[replace(run, result=rename(run.result)) for run in self.zero_shot],
            retrieval=[replace(run, scores=rename(run.scores)) for run in self.retrieval],
            linear_probe=[
                replace(rename(result), train=names.get(result.train, result.train))
                for result in self.linear_probe
            ],
            few_shot=[rename(result) for result in self.few_shot],
            sugarcrepe=[rename(result) for result in self.sugarcrepe],
            winoground=[rename(result) for result in self.winoground],
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, as evaluation.json holds them; shares are fractions of 1."""
        return {
            "zero_shot": [asdict(run.result) for run in self.zero_shot],
            "retrieval": [asdict(run.scores) for run in self.retrieval],
            "linear_probe": [asdict(result) for result in self.linear_probe],
            "few_shot": [asdict(result) for result in self.few_shot],
            "sugarcrepe": [asdict(result) for result in self.sugarcrepe],
            "winoground": [asdict(result) for result in self.winoground],
        }


def evaluate(encoder: Encoder, suite: Suite) -> Outcome:
    """Measure everything; every process must call it, and rank 0 gets the scores.

    Pictures of a set that several measurements share are encoded once.

    Raises:
        FileNotFoundError: data are missing.
        ValueError: data are damaged.
    """
    from evaluation.compositional import (
        evaluate_sugarcrepe,
        evaluate_winoground,
        open_sugarcrepe,
        open_winoground,
    )
    from evaluation.linear_probe import evaluate_linear_probe
    from evaluation.retrieval import evaluate_retrieval
    from evaluation.zero_shot import evaluate_zero_shot

    outcome = Outcome()
    for place in suite.zero_shot:
        _add(outcome.zero_shot, evaluate_zero_shot(encoder, place))
    for place in suite.retrieval:
        _add(outcome.retrieval, evaluate_retrieval(encoder, place))
    for train, test in suite.pairs:
        found = evaluate_linear_probe(
            encoder, train, test, shots=suite.few_shot, seeds=suite.few_shot_seeds
        )
        if found:
            outcome.linear_probe.append(found[0])
            outcome.few_shot += found[1]
    for place in suite.sugarcrepe:
        data = open_sugarcrepe(place, suite.sugarcrepe_images)
        _add(outcome.sugarcrepe, evaluate_sugarcrepe(encoder, data))
    for place in suite.winoground:
        _add(outcome.winoground, evaluate_winoground(encoder, open_winoground(place)))
    return outcome


def _add(found: list[Any], result: Any) -> None:
    """Keep a result; on other ranks than 0 there is none."""
    if result is not None:
        found.append(result)
