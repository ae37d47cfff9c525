"""The end of a run: what the model can do, and the page that shows it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.features import evaluation_config
from evaluation.gallery import mask_gallery, retrieval_examples
from evaluation.report import ReportData, StepSeries, write_report
from evaluation.retrieval import RetrievalRun, evaluate_retrieval
from evaluation.zero_shot import ZeroShotRun, evaluate_zero_shot, open_labelled
from pipeline import LoaderConfig
from pipeline.selection import Dataset, open_dataset
from pipeline.stats import LoaderStats
from training.config import EvaluationConfig, to_json
from training.environment import device_words, versions
from training.metrics import StepRecord, memory_bytes, read_records
from training.run_folder import write_json
from training.session import Session
from training.stages import Stage, architecture, stages_of

_NUM_GALLERY = 12
_NUM_EXAMPLES = 4


@dataclass(kw_only=True, slots=True)
class Outcome:
    """Everything that was measured at the end of a run."""

    zero_shot: list[ZeroShotRun] = field(default_factory=list)
    """One for each labelled data set."""
    retrieval: list[RetrievalRun] = field(default_factory=list)
    """One for each data set of pairs."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, as evaluation.json holds them; shares are fractions of 1."""
        return {
            "zero_shot": [asdict(run.result) for run in self.zero_shot],
            "retrieval": [asdict(run.scores) for run in self.retrieval],
        }

    def lines(self) -> list[str]:
        """A line for each score, beside what guessing gives."""
        found = []
        for run in self.zero_shot:
            score = run.result
            found.append(
                f"zero-shot {score.dataset}: {score.acc1:.1%} of {score.num_images} images right, "
                f"{score.num_classes} classes, chance {score.chance:.1%}"
            )
        for run in self.retrieval:
            score = run.scores
            for name in ("image_to_text", "text_to_image"):
                recalls = getattr(score, name)
                shown = ", ".join(f"R@{k} {recall:.1%}" for k, recall in recalls.items())
                chance = ", ".join(f"{c:.1%}" for c in score.chance[name].values())
                found.append(f"{name} {score.dataset}: {shown} (chance {chance})")
        return found


def check_evaluation(config: EvaluationConfig) -> None:
    """Make sure that everything to be measured at the end is there at the start.

    Raises:
        FileNotFoundError: an index, class names or templates are missing.
        ValueError: an index is damaged or has no labels.
    """
    for index_dir in config.zero_shot:
        open_labelled(index_dir)
    for index_dir in config.retrieval:
        open_dataset(index_dir)


def evaluate_session(session: Session, progress: Callable[[int], object] | None = None) -> Outcome:
    """Measure the model on the recipe's data sets and write evaluation.json.

    Args:
        session: trained.
        progress: told how many images and texts are done.
    """
    config = session.config
    prepared = _prepared(session)
    outcome = Outcome()
    session.clip.eval()
    with session.timeline.during("evaluation"):
        for index_dir in config.evaluation.zero_shot:
            outcome.zero_shot.append(
                evaluate_zero_shot(session.clip, index_dir, prepared, progress)
            )
        for index_dir in config.evaluation.retrieval:
            outcome.retrieval.append(
                evaluate_retrieval(session.clip, index_dir, prepared, progress)
            )
    session.clip.train()
    write_json(session.folder.evaluation, {"step": session.run_step, **outcome.to_json()})
    return outcome


def report_session(session: Session, outcome: Outcome, argv: list[str]) -> None:
    """Write report.html.

    Args:
        session: of the run.
        outcome: from `evaluate_session`; empty for a run that was stopped.
        argv: command line arguments of this process.
    """
    config = session.config
    gallery, mask_ratios = mask_gallery(session.loader, _NUM_GALLERY)
    prepared = _prepared(session)
    records = read_records(session.folder.metrics)
    stage = session.stage
    done = stage.is_last and session.step >= config.num_steps
    where = f"stopped at step {session.step} of {config.num_steps}"
    status = "finished" if done else f"{where} in {stage.name}" if stage.name else where
    data = ReportData(
        title=f"{config.recipe}: {config.model}, {config.mask.kind} mask",
        recipe=config.recipe,
        command=shlex.join(["python", "train.py", *argv]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status=status,
        config=to_json(session.run_config),
        model=config.model,
        dataset=config.data.train,
        device=device_words(session.device),
        facts=_facts(session, records),
        steps=_series(records),
        loss_at_chance=math.log(config.batch_size),
        time_split=list(session.timeline.seconds.items()),
        data_facts=_data_facts(session.loader.dataset, session.loader.stats),
        gallery=gallery,
        mask_ratios=mask_ratios,
        retrieval=[
            example
            for run, index_dir in zip(outcome.retrieval, config.evaluation.retrieval, strict=False)
            for example in retrieval_examples(
                run, open_dataset(index_dir).index, prepared, _NUM_EXAMPLES
            )
        ],
        zero_shot=[run.result for run in outcome.zero_shot],
        retrieval_scores=[run.scores for run in outcome.retrieval],
        confusions=[item for run in outcome.zero_shot for item in run.confusions],
    )
    write_report(data, session.folder.report)


def _prepared(session: Session) -> LoaderConfig:
    """How data are prepared to be evaluated by this model."""
    config = session.config
    return evaluation_config(session.clip, config.evaluation.batch_size, config.data.threads)


def _series(records: list[StepRecord]) -> StepSeries:
    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(record, name) for record in records], dtype=np.float64)

    return StepSeries(
        step=column("step"),
        samples=column("samples"),
        loss=column("loss"),
        lr=column("lr"),
        logit_scale=column("logit_scale"),
        step_s=column("step_s"),
        data_wait_s=column("data_wait_s"),
    )


def _facts(session: Session, records: list[StepRecord]) -> list[tuple[str, str]]:
    config = session.config
    num_parameters = sum(p.numel() for p in session.clip.parameters())
    seconds = sum(record.step_s for record in records)
    facts = [
        ("Model", f"{config.model}, {num_parameters / 1e6:.1f} M parameters"),
        ("Device", device_words(session.device)),
        ("Batch", f"{config.batch_size} pairs"),
        ("Samples seen", f"{session.stage.samples(session.step):,}"),
    ]
    stages = stages_of(session.run_config)
    facts += [(f"Stage {stage.number}", _stage_words(stage)) for stage in stages[1:]]
    if seconds:
        waited = sum(record.data_wait_s for record in records) / seconds
        pairs = sum(stages[record.stage - 1].config.batch_size for record in records)
        facts += [
            ("Training rate", f"{pairs / seconds:,.0f} pairs/s"),
            ("Waiting for data", f"{waited:.1%} of the training time"),
            ("Loader's bottleneck", str(session.loader.stats.slowest())),
            ("To the model", f"{session.loader.stats.bytes_per_image / 1000:,.1f} kB a pair"),
        ]
    facts.append(("Peak memory", f"{memory_bytes(session.device) / 2**30:.2f} GiB"))
    return facts + [(name, number) for name, number in versions().items()]


def _stage_words(stage: Stage) -> str:
    config = stage.config
    ratio = f" {config.mask.mask_ratio:.0%}" if config.mask.kind != "none" else ""
    return (
        f"from step {stage.first_step:,}: {config.num_steps:,} steps of {config.batch_size} pairs, "
        f"mask {config.mask.kind}{ratio}, {architecture(config).vision.image_size} pixels"
    )


def _data_facts(dataset: Dataset, stats: LoaderStats) -> list[tuple[str, str]]:
    index = dataset.index
    facts = [
        ("Samples", f"{index.num_samples:,}"),
        ("Shards", f"{len(index.shards):,}"),
        ("Fingerprint", index.fingerprint[:16]),
    ]
    if dataset.selection:
        facts += [
            ("Selection", f"{dataset.selection.name}: {dataset.num_samples:,} samples"),
            ("Its fingerprint", dataset.selection.fingerprint[:16]),
        ]
    facts += [(f"Rejected: {reason}", f"{n:,}") for reason, n in index.rejections.items()]
    facts.append(("Replaced while training", f"{stats.num_replaced:,} visits"))
    facts += [("Captions", line) for line in stats.caption_lines()]
    facts += [
        (f"Bad sample {bad.key}", f"{bad.shard}: {bad.reason}; {bad.instead}")
        for bad in list(stats.bad_samples.values())[:20]
    ]
    return facts
