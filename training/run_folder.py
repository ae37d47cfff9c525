"""The folder of one run: what lies where, who may write, and whether a run in it can go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tessera.model.config import ClipConfig
from tessera.pipeline.durable import remove_partials, write_text
from tessera.pipeline.file_lock import FileLock, HeldError
from tessera.training.checkpoint import checkpoint_folders, step_of
from tessera.training.config import TrainConfig, to_json
from tessera.training.config_differences import PLANNED, differences
from tessera.training.extension import check_extension, pinned


class RunFolder:
    """Paths of a run; written by the one process that has claimed it, rank 0."""

    def __init__(self, path: Path) -> None:
        """Name the paths; nothing is touched.

        Args:
            path: the folder; need not exist.
        """
        self.path = path
        self._lock: FileLock | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.path / "metrics.jsonl"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.json"

    @property
    def evaluation(self) -> Path:
        """What was measured at the end; its presence means that the run is finished."""
        return self.path / "evaluation.json"

    @property
    def evaluations(self) -> Path:
        """One JSON line for each evaluation, those on the way included."""
        return self.path / "evaluations.jsonl"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """What the terminal showed, with times."""
        return self.path / "train.log"

    @property
    def sample_ids(self) -> Path:
        """Rows of the index that each step was trained on, where the run logs them."""
        return self.path / "sample_ids.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files, where the run writes them."""
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """Which run of Weights & Biases this is, where it reports there."""
        return self.path / "wandb_id"

    @property
    def has_begun(self) -> bool:
        """Whether a run left anything here: a start that failed before its first step did not."""
        logged = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return logged or bool(checkpoint_folders(self.checkpoints))

    def claim(self, config: TrainConfig, *, restart: bool = False) -> TrainConfig:
        """Keep other processes out, and make sure that a run found here has this configuration.

        A run that is found may be made longer where that changes no step that was done.

        Args:
            config: of the run; written into the folder.
            restart: remove the run found here instead.

        Returns:
            The configuration to train by: the one given, but of a run that was extended the warm-up
            stays that of its first length.

        Raises:
            ValueError: the folder cannot be written, another process is running in it, or it holds
                a run with another configuration; names the fields.
        """
        self._take_lock()
        remove_partials(self.path)
        if restart:
            self.clear()
        planned = config.total_samples
        if self.config.exists() and self.has_begun:
            stored = self._stored_config()
            self._require_same(stored, config)
            planned = stored.get(PLANNED, stored["total_samples"])
            if config.total_samples > stored["total_samples"]:
                self.evaluation.unlink(missing_ok=True)  # it is not finished any more
        if planned == config.total_samples:
            write_json(self.config, to_json(config))
            return config
        config = pinned(config, planned)
        write_json(self.config, to_json(config) | {PLANNED: planned})
        return config

    def check(self, config: TrainConfig) -> None:
        """What `claim` checks, without keeping others out or writing anything.

        Raises:
            ValueError: the folder holds a run with another configuration; names the fields.
        """
        if self.config.exists() and self.has_begun:
            self._require_same(self._stored_config(), config)

    def _require_same(self, stored: dict[str, Any], config: TrainConfig) -> None:
        changed = differences(stored, to_json(config))
        before = stored["total_samples"]
        if config.total_samples > before and len(changed) == 1:
            found = checkpoint_folders(self.checkpoints)
            step = step_of(found[0]) if found else 0
            check_extension(config, self.path, planned=before, step=step)
        elif changed:
            raise ValueError(
                f"{self.path} holds a run with another configuration:\n  "
                + "\n  ".join(changed)
                + "\nGive this one a folder of its own with --run-dir, or begin that one "
                "again with --restart"
            )

    def clear(self) -> None:
        """Remove the run's files, and nothing else that lies in the folder."""
        for folder in (self.checkpoints, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        files = [self.metrics, self.sample_ids, self.config, self.evaluation, self.report, self.log]
        files += [self.wandb_id, self.evaluations]
        for path in [*files, *self.path.glob("bad_batch_*.safetensors")]:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock((self.path / "lock").open("w", encoding="utf-8"))
        except HeldError as error:
            raise ValueError(
                f"another process is training in {self.path}: wait for it, or choose another "
                f"--run-dir{error.remedy}"
            ) from error
        except OSError as error:
            raise ValueError(
                f"the run folder {self.path} cannot be written ({error.strerror}): "
                "choose another one with --run-dir"
            ) from error

    def _stored_config(self) -> dict[str, Any]:
        try:
            return json.loads(self.config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{self.config} is damaged ({error}): begin again with --restart"
            ) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def newest_checkpoint(place: Path) -> Path:
    """The folder that a model is read from, for every program that takes a model.

    Args:
        place: a run's folder or the folder of its checkpoints, for its last checkpoint; any other
            folder is taken for a model's own (a checkpoint, open_clip's or Hugging Face's).

    Raises:
        FileNotFoundError: there is no such folder, or the run has no checkpoint yet.
    """
    if not place.is_dir():
        raise FileNotFoundError(f"there is no run and no checkpoint at {place}")
    run = RunFolder(place)
    checkpoints = place if place.name == run.checkpoints.name else run.checkpoints
    found = checkpoint_folders(checkpoints)
    if found:
        return found[0]
    if checkpoints.is_dir() or run.log.is_file() or run.metrics.is_file():
        raise FileNotFoundError(
            f"the run {place} has no checkpoint yet: the first is written after its first "
            "save_every steps, or when it is stopped"
        )
    return place


def named(config: ClipConfig, folder: Path) -> ClipConfig:
    """The config under the model's name, which the run's `state.json` holds."""
    state = folder / "state.json"
    if not state.is_file():
        return config
    name = json.loads(state.read_text(encoding="utf-8"))["config"]["model"]
    return replace(config, name=name)
