"""A plan of small runs, and folders as finished runs leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tessera.tools.comparison.plan import Plan, PlannedRun, make_plan
from tessera.tools.comparison.variants import find_variant
from tessera.training.config import to_json
from tessera.training.metrics import StepRecord

FinishRun = Callable[..., None]


@pytest.fixture(scope="session")
def plan(coloured_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    variants = [find_variant(name, "demo") for name in ("clip", "flip-50", "cluster-rgb-03")]
    words = [
        "--data.train",
        str(coloured_index),
        "--batch-size",
        "32",
        "--total-samples",
        "640",
        "--optim.warmup-samples",
        "64",
    ]
    out = tmp_path_factory.mktemp("compared")
    return make_plan(variants, (0, 1, 2), ("samples", "compute"), words, out)


@pytest.fixture
def finish_run() -> FinishRun:
    """Writes what a finished run leaves in its folder."""

    def finish(run: PlannedRun, *, top1: float, recall: float, step_s: float = 0.5) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        batch = run.config.batch_size
        records = [
            StepRecord(
                step=step,
                samples=step * batch,
                loss=4.0 / step,
                lr=1e-3,
                logit_scale=14.0,
                step_s=step_s,
                data_wait_s=0.0,
            )
            for step in range(1, run.config.num_steps + 1)
        ]
        lines = [json.dumps(asdict(record)) for record in records]
        (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        (run.folder / "config.json").write_text(json.dumps(to_json(run.config)), "utf-8")
        recalls = {"1": recall, "5": recall, "10": recall}
        chances = {"1": 0.01, "5": 0.05, "10": 0.1}
        evaluation = {
            "zero_shot": [{"dataset": "held-out", "acc1": top1, "chance": 0.1}],
            "retrieval": [
                {
                    "dataset": "held-out",
                    "image_to_text": recalls,
                    "text_to_image": recalls,
                    "chance": {"image_to_text": chances, "text_to_image": chances},
                }
            ],
        }
        (run.folder / "evaluation.json").write_text(json.dumps(evaluation), "utf-8")

    return finish
