r"""Tune a language model so that captions of one image lie close together: LLM2CLIP's first stage.

    pip install transformers peft
    python tools/finetune_llm.py INDEX --llm FOLDER --out runs/llm --sources caption rewrites
    torchrun --nproc-per-node 8 tools/finetune_llm.py INDEX@train --llm FOLDER --out runs/llm \
        --probe INDEX@heldout

Writes LoRA weights to OUT/adapter for `tools/embed_captions.py --encoder FOLDER --adapter ...`, and
scores the model before and after: two captions of one image should find each other. Stopped or
killed, the same command goes on from the newest checkpoint.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import torch
import tyro

from tessera.pipeline.durable import write_text
from tessera.tools.captioning.program import run_program
from tessera.tools.llm_finetuning.probe import ProbeScores
from tessera.tools.llm_finetuning.session import ADAPTER, FineTuning, kept_out, train
from tessera.tools.llm_finetuning.settings import Settings
from tessera.training.checkpoint import CheckpointError
from tessera.training.distributed import RankError, Ranks, join_ranks
from tessera.training.interrupt import Interrupted, StopRequests
from tessera.training.terminal import set_up_logging

_TIMEOUT_S = 1800.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    stops = StopRequests()

    def work(words: list[str]) -> dict[str, Any] | None:
        settings = tyro.cli(Settings, args=words, description=program.describe(__doc__))
        with join_ranks(_TIMEOUT_S) as ranks:
            set_up_logging(rank=ranks.rank)
            # One rank speaks; print says nothing where stdout is None.
            with nullcontext() if ranks.is_main else redirect_stdout(None):
                result = finetune_alone(settings, ranks, stops)
            return result if ranks.is_main else None

    try:
        with stops.installed():
            return run_program(work, argv)
    except Interrupted as interrupted:
        print("stopped; the same command resumes from the newest checkpoint", file=sys.stderr)
        return interrupted.exit_status


def finetune_alone(settings: Settings, ranks: Ranks, stops: StopRequests) -> dict[str, Any]:
    """As `finetune`, and keep other runs out of the folder meanwhile."""
    with kept_out(settings.out, ranks):
        return finetune(settings, ranks, stops)


def finetune(settings: Settings, ranks: Ranks, stops: StopRequests) -> dict[str, Any]:
    """Do the run; returns its result.

    Raises:
        RuntimeError: it could not be done to the end.
    """
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    start = time.perf_counter()
    try:
        run = FineTuning(settings, ranks)
        trained = sum(p.numel() for p in run.encoder.parameters() if p.requires_grad)
        print(f"adapters   {trained:,} weights; {run.num_steps:,} steps, {run.step:,} done")
        if run.probe_before is None:
            run.probe_before = run.probe()
        losses = train_until_stopped(run, ranks, stops)
        run.finish()
        after = run.probe()
    except (CheckpointError, RankError) as error:
        raise RuntimeError(str(error)) from error
    result = {
        "adapter": str(settings.out / ADAPTER),
        "steps": run.step,
        "loss": losses,
        "probe_before": asdict(run.probe_before),
        "probe_after": asdict(after),
        "seconds": round(time.perf_counter() - start, 3),
    }
    for name, scores in (("before", run.probe_before), ("after", after)):
        print(f"probe      {name:6} {_words(scores)}")
    print(f"written    {settings.out / ADAPTER}")
    if ranks.is_main:
        write_text(settings.out / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def train_until_stopped(run: FineTuning, ranks: Ranks, stops: StopRequests) -> dict[str, float]:
    """Train to the end; a signal ends it after the current step, with a checkpoint.

    Raises:
        Interrupted: a signal came.
    """
    with stops.deferred():
        losses = train(run, ranks, lambda: stops.requested)
    if run.step < run.num_steps:
        stops.end_run()
    return losses


def _words(scores: ProbeScores) -> str:
    return (
        f"{scores.first_to_second:.1%} and {scores.second_to_first:.1%} find their partner "
        f"among {scores.num_images:,}"
    )


if __name__ == "__main__":
    sys.exit(main())
