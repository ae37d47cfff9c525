"""The end of a run: what the model can do, and the page that shows it."""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.evaluation.encoder import Encoder
from tessera.evaluation.scores import curves
from tessera.evaluation.scores import from_json as scores_from_json
from tessera.evaluation.scores import to_json as scores_to_json
from tessera.evaluation.suite import Outcome, evaluate
from tessera.evaluation.text_features import open_text_features
from tessera.pipeline.durable import write_text
from tessera.pipeline.index.dataset import Dataset, open_dataset
from tessera.pipeline.mixture import Mixture
from tessera.pipeline.stats import LoaderStats
from tessera.report.gallery import mask_gallery, retrieval_examples
from tessera.report.run import write_report
from tessera.report.run_data import ReportData
from tessera.report.series import StepSeries
from tessera.training.config import to_json
from tessera.training.environment import device_words, versions
from tessera.training.health import falling_scores
from tessera.training.metrics import StepRecord, memory_bytes, read_records
from tessera.training.run_folder import RunFolder, write_json
from tessera.training.session import Session
from tessera.training.stages import Stage, architecture, stages_of

logger = logging.getLogger(__name__)

_NUM_GALLERY = 12
_NUM_EXAMPLES = 4


def evaluate_session(session: Session, progress: Callable[[int], object] | None = None) -> Outcome:
    """Measure the model as it is now, and write the scores to evaluations.jsonl.

    Every rank must call it, after the same step, and does its share.

    Args:
        session: of the run; training can go on afterwards as if nothing had been.
        progress: told how many images and texts are done.

    Returns:
        The scores, on rank 0.
    """
    config = session.config
    session.flush()  # the steps so far come before their scores, wherever they are shown
    with session.timeline.during("evaluation"):
        clip = session.evaluation_model()
        encoder = Encoder(
            clip=clip,
            batch_size=config.evaluation.batch_size,
            num_threads=config.data.threads,
            ranks=session.ranks,
            texts=open_text_features(clip, config.evaluation.text_encoder),
            progress=progress,
        )
        outcome = evaluate(encoder, config.evaluation)
        session.ranks.on_main(lambda: _remember(session, outcome))
    return outcome


def _remember(session: Session, outcome: Outcome) -> None:
    """Add the scores to evaluations.jsonl; what an earlier process wrote beyond this step goes."""
    record = {
        "step": session.run_step,
        "samples": session.stage.samples(session.step),
        **scores_to_json(outcome.scores),
    }
    kept = [each for each in read_evaluations(session.folder) if each["step"] < session.run_step]
    lines = [json.dumps(each) + "\n" for each in [*kept, record]]
    write_text(session.folder.evaluations, "".join(lines))
    evaluations = read_evaluations(session.folder)
    history = [(each["step"], dict(_scores(each))) for each in evaluations]
    for watcher in session.watchers:
        watcher.write_scores(*history[-1])
    warning = falling_scores(history)
    if warning:
        logger.warning("%s", warning)


def read_evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    """The evaluations of a run, oldest first: `step`, `samples`, and the scores."""
    if not folder.evaluations.exists():
        return []
    return [json.loads(line) for line in folder.evaluations.read_text("utf-8").splitlines()]


def report_session(session: Session, outcome: Outcome, argv: list[str]) -> None:
    """Write evaluation.json, by which a run is finished, and report.html.

    Args:
        session: of the run.
        outcome: from `evaluate_session`; empty for a run that was stopped.
        argv: command line arguments of this process.
    """
    config = session.config
    write_json(
        session.folder.evaluation, {"step": session.run_step} | scores_to_json(outcome.scores)
    )
    gallery, mask_ratios = mask_gallery(session.loader, _NUM_GALLERY)
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
        dataset=" ".join(config.data.train_sets),
        device=device_words(session.device),
        facts=_facts(session, records),
        versions=list(versions().items()),
        steps=_series(records, read_evaluations(session.folder)),
        loss_at_chance=math.log(config.batch_size),
        time_split=list(session.timeline.seconds.items()),
        data_facts=_data_facts(session.loader.dataset, session.loader.stats),
        gallery=gallery,
        mask_ratios=mask_ratios,
        retrieval=[
            example
            for run, index_dir in zip(outcome.retrieval, config.evaluation.retrieval, strict=False)
            for example in retrieval_examples(
                run, open_dataset(index_dir).index, session.clip.config, _NUM_EXAMPLES
            )
        ],
        scores=outcome.scores,
        confusions=outcome.confusions,
    )
    write_report(data, session.folder.report)


def _series(records: list[StepRecord], evaluations: list[dict[str, Any]]) -> StepSeries:
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
        evaluations=[
            (each["samples"], name, value) for each in evaluations for name, value in _scores(each)
        ],
    )


def _scores(evaluation: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What is drawn of an evaluation: a name and a share each."""
    yield from curves(scores_from_json(evaluation)).items()


def _facts(session: Session, records: list[StepRecord]) -> list[tuple[str, str]]:
    config = session.config
    num_parameters = sum(p.numel() for p in session.clip.parameters())
    seconds = sum(record.step_s for record in records)
    facts = [
        ("Model", f"{config.model}, {num_parameters / 1e6:.1f} M parameters"),
        ("Device", device_words(session.device)),
        ("Start weights", config.init_from or f"random, seed {config.seed}"),
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
    return facts


def _stage_words(stage: Stage) -> str:
    config = stage.config
    ratio = f" {config.mask.mask_ratio:.0%}" if config.mask.kind != "none" else ""
    return (
        f"from step {stage.first_step:,}: {config.num_steps:,} steps of {config.batch_size} pairs, "
        f"mask {config.mask.kind}{ratio}, {architecture(config).vision.image_size} pixels"
    )


def _data_facts(dataset: Dataset | Mixture, stats: LoaderStats) -> list[tuple[str, str]]:
    index = dataset.index
    facts = [
        ("Samples", f"{index.num_samples:,}"),
        ("Shards", f"{len(index.shards):,}"),
        ("Fingerprint", index.fingerprint[:16]),
    ]
    if isinstance(dataset, Mixture):
        facts += [
            (f"Set {part.index.directory.name}", f"{part.num_samples:,} samples, weight {weight:g}")
            for part, weight in zip(dataset.parts, dataset.weights, strict=True)
        ]
    elif dataset.selection:
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
