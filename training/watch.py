"""TensorBoard and Weights & Biases: the log's records, shown elsewhere too."""

from __future__ import annotations

import importlib
import logging
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies

from tessera.pipeline.durable import write_text
from tessera.training.config import TrainConfig, WatchConfig, to_json
from tessera.training.metrics import StepRecord
from tessera.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

_SHOWN = ("loss", "lr", "logit_scale", "grad_norm", "step_s", "data_wait_s", "samples", "stage")
_PACKAGES = {
    "tensorboard": ("tensorboard", "torch.utils.tensorboard.writer"),
    "wandb": ("wandb", "wandb"),
}
"""Package and the module of it, or of torch, that is imported, by the option that wants it."""
_OFFLINE = ("offline", "disabled", "dryrun", "shared")
"""Modes of the package in which it needs no service."""
_ANSWER_S = 3
"""Seconds that the service has to take a connection."""
_INIT_S = 5
"""Seconds that the service has to answer; the fallback needs some of its own."""
_FINISH_S = 10
"""Seconds that the end of a run waits for what is still to be sent."""


class Watcher(Protocol):
    """Something that shows the steps of a run."""

    def write(self, records: list[StepRecord]) -> None:
        """Show steps, in their order."""
        ...

    def write_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Show what was measured after a step, when all steps up to it are written."""
        ...

    def close(self) -> None:
        """Send what is still under way."""
        ...


def check_watch(config: WatchConfig) -> None:
    """Make sure that the packages asked for can be used, before any work starts.

    Raises:
        ValueError: one cannot; gives the command that installs it.
    """
    for field, (package, module) in _PACKAGES.items():
        if not getattr(config, field):
            continue
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"--watch.{field} needs the package {package}: pip install {package}, or leave the "
                f"option out ({error})"
            ) from error


def open_watchers(config: TrainConfig, folder: RunFolder, *, resumed_step: int) -> list[Watcher]:
    """Open what the configuration asks for; on the rank that writes.

    Args:
        config: of the run.
        folder: of the run.
        resumed_step: the last step that counts, 0 for a fresh run.
    """
    check_watch(config.watch)
    found: list[Watcher] = []
    if config.watch.tensorboard:
        found.append(TensorBoard(folder.tensorboard, resumed_step))
    if config.watch.wandb:
        found.append(WandB(config, folder, resumed_step))
    return found


class TensorBoard:
    """Event files, read by `tensorboard --logdir RUN_DIR`."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        """Open a new file; of older ones, steps beyond the resumed one are hidden.

        Args:
            folder: of the event files.
            resumed_step: the last step that counts.
        """
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, records: list[StepRecord]) -> None:
        """Append steps and flush them to the file."""
        for record in records:
            for name, value in _values(record).items():
                self._writer.add_scalar(f"train/{name}", value, record.step)
        self._writer.flush()

    def write_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Append the scores of an evaluation."""
        for name, value in scores.items():
            self._writer.add_scalar(f"evaluation/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, continued under the same id when training is."""

    def __init__(self, config: TrainConfig, folder: RunFolder, resumed_step: int) -> None:
        """Begin or continue the run; the id lies in RUN_DIR/wandb_id.

        Args:
            config: of the run, shown beside its curves.
            folder: of the run; the package's own files go there too.
            resumed_step: 0 begins a new run, whatever id is found.
        """
        if resumed_step == 0 or not folder.wandb_id.exists():
            write_text(folder.wandb_id, secrets.token_hex(4))
        self._run = _open_run(
            project=config.watch.wandb,
            name=folder.path.name,
            id=folder.wandb_id.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder.path),
            config=to_json(config),
        )
        # Steps sent before a crash are done again, and come out equal: they are not sent twice.
        self._sent = self._run.step

    def write(self, records: list[StepRecord]) -> None:
        """Send the steps that the service does not have yet."""
        for record in records:
            if record.step >= self._sent:
                self._run.log(_values(record), step=record.step)

    def write_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Send the scores of an evaluation, unless the service has them."""
        if step >= self._sent:
            self._run.log({f"evaluation/{k}": v for k, v in scores.items()}, step=step)

    def close(self) -> None:
        """Send the rest and end the run; what cannot be sent in time stays in its folder."""
        self._run.finish()


def _open_run(**options: Any) -> Any:
    """A run of the service, or one in the run's folder where the service cannot be reached.

    Training does not depend on it: without a login or a network this takes seconds, and a line
    says so.
    """
    import wandb

    common = {"login_timeout": 1, "finish_timeout": _FINISH_S, "silent": True}
    settings = wandb.Settings(init_timeout=_INIT_S, **common)
    try:
        if settings.mode not in _OFFLINE:
            _require_answer(settings.base_url)
        return wandb.init(**options, settings=settings)
    except Exception as error:  # the package's errors have no class in common but this one
        reason = (str(error).strip() or "no answer").splitlines()[0].rstrip(".")
        logger.warning(
            "Weights & Biases cannot be used (%s); the run is written to %s instead, and "
            "`wandb sync` sends it later",
            reason,
            Path(options["dir"]) / "wandb",
        )
    wandb.teardown()  # what failed holds on to the run's id
    return wandb.init(**options, mode="offline", settings=wandb.Settings(**common))


def _require_answer(url: str) -> None:
    """Raise OSError where nothing answers; the package itself would try again for long."""
    if getproxies():
        return  # the way leads through a proxy, which the package knows how to use
    address = urlsplit(url)
    port = address.port or (80 if address.scheme == "http" else 443)
    socket.create_connection((address.hostname or "", port), timeout=_ANSWER_S).close()


def _values(record: StepRecord) -> dict[str, Any]:
    fields = asdict(record)
    return {name: fields[name] for name in _SHOWN}
