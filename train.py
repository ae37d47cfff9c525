"""Train a CLIP model by a recipe.

    python train.py                         the demo: draws its own data, a few minutes on a CPU
    python train.py RECIPE                  another recipe
    python train.py --list                  all recipes
    python train.py RECIPE --mini           its miniature: the same code in a minute on a CPU
    python train.py RECIPE --dry-run        what would run
    python train.py RECIPE --mask.kind none any single field of the recipe

    torchrun --nproc-per-node 8 train.py RECIPE     the same run on 8 GPUs (docs/scaling.md)

The same command continues a run that was stopped, on any number of processes. Exit status: 0
finished, 1 failed, 2 wrong use or missing data, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

from tessera.training.interrupt import Interrupted, StopRequests, end_at_ctrl_c

if __name__ == "__main__":
    end_at_ctrl_c()  # the imports below take seconds

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tessera.pipeline.printable import message_of, print_all
from tessera.recipes import find_recipe, list_recipes
from tessera.training.command_line import Command, parse, unchanged

if __name__ == "__main__":  # what needs little is answered without waiting for the rest
    if sys.argv[1:] == ["--list"]:
        print_all(list_recipes())
        sys.exit()
    if "--help" in sys.argv:
        with suppress(ValueError):  # said by main, with a status
            parse(sys.argv[1:], lambda name: find_recipe(name).build(), __doc__ or "")

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tessera.evaluation.records import lines as score_lines
from tessera.evaluation.suite import Outcome
from tessera.pipeline import PackedBatch
from tessera.training.checkpoint import CheckpointError
from tessera.training.config import TrainConfig
from tessera.training.distributed import RankError, join_ranks
from tessera.training.dry_run import DryRun
from tessera.training.metrics import NonFiniteLossError, describe
from tessera.training.opening import open_session
from tessera.training.report import evaluate_session, report_session
from tessera.training.run_folder import RunFolder, newest_checkpoint
from tessera.training.session import Session
from tessera.training.stages import stages_of
from tessera.training.terminal import brief, failure, next_commands, set_up_logging
from tessera.training.timeline import Timeline
from tessera.training.watch import check_watch
from tessera.training.watch_steps import DATA, RANKS

logger = logging.getLogger("tessera")

_MISHAPS = (OSError, RuntimeError, MemoryError)
"""What the machine and its libraries raise."""


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status."""
    stops = StopRequests()
    try:
        try:
            with stops.installed():
                return start(argv, stops)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has enough of it: no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Interrupted as stop:
        print(f"\nstopped by {stop}; the same command goes on from here", file=sys.stderr)
        return stop.exit_status
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2
    except (CheckpointError, NonFiniteLossError, RankError, *_MISHAPS) as error:
        logger.debug("where it failed", exc_info=True)
        print(f"failed: {failure(error)}", file=sys.stderr)
        return 1


def start(argv: Sequence[str], stops: StopRequests) -> int:
    """Do what the words ask for; returns the exit status."""
    command = parse(argv, lambda name: find_recipe(name).build(), __doc__ or "")
    if command.dry_run:
        return show(command, argv)
    return run(command, list(argv), stops)


def show(command: Command, argv: Sequence[str]) -> int:
    """Check and describe a run without starting it; returns the program's exit status."""
    config = command.config
    found = DryRun(config, makes_data=find_recipe(config.recipe).makes_data(config))
    recipe = unchanged(argv, lambda name: find_recipe(name).build())
    print("\n".join(found.lines(recipe, verbose=command.verbose)), flush=True)
    for problem in found.problems:
        print(f"error: a start would end here: {problem}", file=sys.stderr)
    return 2 if found.problems else 0


def run(command: Command, argv: list[str], stops: StopRequests) -> int:
    """Prepare the data, train, evaluate, report; on every rank."""
    config = command.config
    stages_of(config)  # what cannot be ends the run before any work is done
    check_watch(config.watch)
    folder = RunFolder(Path(config.run_dir))
    timeline = Timeline()
    with join_ranks(config.distributed.timeout_s) as ranks:
        try:
            if not ranks.is_main:
                set_up_logging(rank=ranks.rank)
            claimed = ranks.on_main(lambda: claim(command, folder, timeline))
            if claimed is None:
                return 0
            config = claimed
            with logging_redirect_tqdm():
                while not run_stage(open_session(config, folder, timeline, ranks), argv, stops):
                    timeline = Timeline()  # the checkpoint that the next stage opens knows the rest
        finally:
            folder.close()
    return 0


def run_stage(session: Session, argv: list[str], stops: StopRequests) -> bool:
    """Train to the end of the stage, and behind the last one evaluate; whether it was the last."""
    try:
        train(session, stops)
        if not session.stage.is_last:
            session.end_stage()
            return False
        session.gather()
        outcome = evaluate_now(session)
        session.ranks.on_main(lambda: finish(session, outcome, argv))
        return True
    finally:
        session.close()


def claim(command: Command, folder: RunFolder, timeline: Timeline) -> TrainConfig | None:
    """Claim the folder and prepare the data, on rank 0.

    Returns:
        What to train by; None if the run was finished before.
    """
    config = folder.claim(command.config, restart=command.restart)
    set_up_logging(folder.log)
    if folder.evaluation.exists():
        print(
            f"this run is finished: see {folder.report}, extend it with a larger --total-samples "
            "where its schedule allows that, or begin again with --restart"
        )
        return None
    with timeline.during("making the data"):
        find_recipe(config.recipe).prepare(config)
    for doubt in config.evaluation.check():
        logger.warning("%s", doubt)
    return config


def train(session: Session, stops: StopRequests) -> None:
    """Take all steps that are left, in the order things happen."""
    config, ranks = session.config, session.ranks
    logger.info("%s", " | ".join(f"{k}={v}" for k, v in brief(session).items()))
    bar = tqdm(
        total=config.num_steps * config.batch_size,
        initial=session.step * config.batch_size,
        unit=" pairs",
        unit_scale=True,
        desc=session.stage.name or "training",
        disable=None if ranks.is_main else True,
    )
    with bar, stops.deferred(), ranks.explained(lambda: session.run_step):
        if config.evaluation.at_start and not session.run_step:
            log_scores(session)
        session.clock.restart()
        while session.step < config.num_steps:
            take_step(session, stops)
            bar.update(config.batch_size)
            with session.timeline.during(RANKS):
                stopping = ranks.vote(stops.requested, session.run_step)
            is_last = session.step == config.num_steps
            if stopping or is_last or session.step % config.save_every == 0:
                records = session.save()
            elif session.step % config.log_every == 0 or session.step == 1:
                records = session.flush()
            else:
                records = []
            if records:
                logger.info("%s", describe(records, session.stage, session.device))
            if stopping:
                session.finish_writing()
                stops.end_run()
            if is_evaluated_now(session):
                log_scores(session)
                session.clock.restart()
        if ranks.end_votes(stops.requested):  # in or behind the last step
            session.finish_writing()
            stops.end_run()


def is_evaluated_now(session: Session) -> bool:
    """Whether an evaluation on the way is due; the one at the end of the run comes by itself."""
    every = session.config.evaluate_every
    ends_here = session.stage.is_last and session.step == session.config.num_steps
    return bool(every) and session.step % every == 0 and not ends_here


def log_scores(session: Session) -> None:
    """Evaluate on the way, on all ranks."""
    for line in score_lines(evaluate_now(session).scores):
        logger.info("%s", line)


def evaluate_now(session: Session) -> Outcome:
    """Measure the model, on all ranks; rank 0 gets the scores."""
    quiet = None if session.ranks.is_main else True
    with tqdm(unit=" images and texts", desc="evaluating", leave=False, disable=quiet) as bar:
        return evaluate_session(session, bar.update)


def await_batch(session: Session, stops: StopRequests) -> PackedBatch:
    """The next batch. A signal ends the wait for it, however long, with a checkpoint.

    With several ranks it waits for the batch: all have to stop behind the same step.
    """
    if session.ranks.world_size > 1:
        return next(session.loader)
    try:
        with stops.at_once():
            return next(session.loader)
    except Interrupted:
        if session.run_step:
            session.save()
            session.finish_writing()
        raise


def take_step(session: Session, stops: StopRequests) -> None:
    """One batch in, one update; nothing is read back from the device."""
    timeline = session.timeline
    session.check_writer()
    session.refresh_mask()
    stats_before = session.loader.stats.snapshot()
    batch = await_batch(session, stops)
    waited = session.loader.stats.wait_s - stats_before.wait_s
    timeline.add(DATA, waited)
    rate = session.start_step()
    loss = session.update(batch)
    done = session.loader.stats.since(stats_before)
    step_s, parts_s = session.clock.lap()
    session.log.add(
        loss,
        session.log_scale(),
        session.grad_norm,
        session.same_captions,
        step=session.run_step,
        samples=session.stage.samples(session.step),
        stage=session.stage.number,
        lr=rate,
        step_s=step_s,
        parts_s=parts_s,
        data_wait_s=waited,
        data_busy_s={name: stage.busy_s for name, stage in done.stages().items()},
        data_bottleneck=done.slowest().stage,
        data_bytes=done.copy.num_bytes,
        replaced=done.num_replaced,
    )


def finish(session: Session, outcome: Outcome, argv: list[str]) -> None:
    """Write the report, and say where everything is."""
    folder = session.folder
    report_session(session, outcome, argv)
    checkpoint = newest_checkpoint(folder.path)
    lines = [
        *score_lines(outcome.scores),
        f"report      {folder.report}",
        f"checkpoint  {checkpoint}",
        f"metrics     {folder.metrics}",
        "next        open the report, train on your own photos (docs/data.md), or",
    ]
    commands = next_commands(session.run_config, argv, checkpoint)
    lines += [f"  {name:10}{command}" for name, command in commands.items()]
    for line in lines:
        logger.info("%s", line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
