"""Train a CLIP model by a recipe.

    python train.py                         the demo: draws its own data, a few minutes on a CPU
    python train.py RECIPE                  another recipe: demo, flickr8k
    python train.py RECIPE --dry-run        what would run
    python train.py RECIPE --mask.kind none any single field of the recipe

The same command continues a run that was stopped. Exit status: 0 finished, 1 failed, 2 wrong use
or missing data, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from model.config import clip_config
from recipes import find_recipe
from training.checkpoint import CheckpointError
from training.command_line import Command, parse
from training.config import TrainConfig, flatten, to_json
from training.dry_run import describe_run
from training.interrupt import Interrupted, StopRequests
from training.metrics import NonFiniteLossError, describe
from training.report import check_evaluation, evaluate_session, report_session
from training.run_folder import RunFolder
from training.session import Session, open_session
from training.step import train_step
from training.timeline import Timeline

logger = logging.getLogger("tessera")


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status."""
    stops = StopRequests()
    try:
        with stops.installed():
            command = parse(argv, lambda name: find_recipe(name).build(), __doc__ or "")
            if command.dry_run:
                print("\n".join(describe_run(command.config)))
                return 0
            return run(command, list(argv), stops)
    except Interrupted as stop:
        print(f"\nstopped by {stop}; the same command goes on from here", file=sys.stderr)
        return stop.exit_status
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, NonFiniteLossError, OSError, RuntimeError) as error:
        logger.debug("where it failed", exc_info=True)
        print(f"failed: {error}", file=sys.stderr)
        return 1


def run(command: Command, argv: list[str], stops: StopRequests) -> int:
    """Prepare the data, train, evaluate, report."""
    config = command.config
    clip_config(config.model)  # a wrong name ends the run before any work is done
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("this version trains in one process: start it with python, not torchrun")
    folder = RunFolder(Path(config.run_dir))
    timeline = Timeline()
    try:
        if command.restart:
            folder.clear()
        folder.claim(config)
        set_up_logging(folder.log)
        if folder.evaluation.exists():
            print(f"this run is finished: see {folder.report}, or begin again with --restart")
            return 0
        with timeline.during("making the data"):
            find_recipe(config.recipe).prepare(config)
        check_evaluation(config.evaluation)
        session = open_session(config, folder, timeline)
        try:
            with logging_redirect_tqdm():
                train(session, stops)
                finish(session, argv)
        finally:
            session.close()
    finally:
        folder.close()
    return 0


def train(session: Session, stops: StopRequests) -> None:
    """Take all steps that are left, in the order things happen."""
    config = session.config
    logger.info("%s", " | ".join(f"{k}={v}" for k, v in brief(session).items()))
    bar = tqdm(
        total=config.num_steps * config.batch_size,
        initial=session.step * config.batch_size,
        unit=" pairs",
        unit_scale=True,
        desc="training",
        disable=None,
    )
    with bar, stops.deferred():
        while session.step < config.num_steps:
            take_step(session)
            bar.update(config.batch_size)
            is_last = session.step == config.num_steps
            if stops.requested or is_last or session.step % config.save_every == 0:
                records = session.save()
            elif session.step % config.log_every == 0:
                records = session.log.flush()
            else:
                continue
            if records:
                logger.info("%s", describe(records, config.num_steps, session.device))
            stops.raise_if_requested()


def take_step(session: Session) -> None:
    """One batch in, one update; nothing is read back from the device."""
    config, timeline = session.config, session.timeline
    session.refresh_mask()
    start = time.perf_counter()
    stats_before = session.loader.stats.snapshot()
    batch = next(session.loader).to(session.device)
    waited = session.loader.stats.wait_s - stats_before.wait_s
    timeline.add("waiting for data", waited)
    rate = session.start_step()
    loss = train_step(session.clip, session.optimizer, batch, config, timeline)
    session.step += 1
    done = session.loader.stats.since(stats_before)
    session.log.add(
        loss,
        session.clip.logit_scale,
        step=session.step,
        samples=session.step * config.batch_size,
        lr=rate,
        step_s=time.perf_counter() - start,
        data_wait_s=waited,
        data_busy_s={name: stage.busy_s for name, stage in done.stages().items()},
        data_bottleneck=done.bottleneck(),
        replaced=done.num_replaced,
    )


def finish(session: Session, argv: list[str]) -> None:
    """Evaluate, write the report, and say where everything is."""
    folder = session.folder
    with tqdm(unit=" images and texts", desc="evaluating", disable=None) as bar:
        outcome = evaluate_session(session, bar.update)
    report_session(session, outcome, argv)
    lines = [
        *outcome.lines(),
        f"report      {folder.report}",
        f"checkpoint  {max(folder.checkpoints.iterdir())}",
        f"metrics     {folder.metrics}",
        f"next        open the report, then compare: `{comparison(session.config)}`",
        "            or train on your own photos: docs/recipes.md",
    ]
    for line in lines:
        logger.info("%s", line)


def comparison(config: TrainConfig) -> str:
    """A command worth trying after this run: the same samples under another mask."""
    kind = "random" if config.mask.kind == "cluster" else "cluster"
    return f"python train.py {config.recipe} --mask.kind {kind} --run-dir {config.run_dir}-{kind}"


def brief(session: Session) -> dict[str, object]:
    """The few fields that say which run this is."""
    fields = flatten(to_json(session.config))
    names = ("recipe", "model", "mask.kind", "mask.mask_ratio", "batch_size", "seed")
    return {name: fields[name] for name in names} | {
        "device": session.device,
        "from step": session.step,
    }


def set_up_logging(path: Path) -> None:
    """Everything from INFO up to the terminal, and with times to the run's own log file."""
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[terminal, file], force=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
