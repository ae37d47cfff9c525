"""The folder of one run: what lies where, who may write, and whether a run in it can go on."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.durable import write_text
from training.config import TrainConfig, differences, to_json


class RunFolder:
    """Paths of a run, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Create or open the folder and lock it.

        Raises:
            ValueError: it cannot be written, or another process is running in it.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / "lock").open("w", encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"the run folder {path} cannot be written ({error.strerror}): "
                "choose another one with --run-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ValueError(
                f"another process is training in {path}: wait for it, or choose another --run-dir"
            ) from error

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
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """What the terminal showed, with times."""
        return self.path / "train.log"

    def claim(self, config: TrainConfig) -> None:
        """Write the configuration, or make sure that the run found here has the same one.

        Raises:
            ValueError: the folder holds a run with another configuration; names the fields.
        """
        wanted = to_json(config)
        if self.config.exists():
            changed = differences(self._stored_config(), wanted)
            if changed:
                raise ValueError(
                    f"{self.path} holds a run with another configuration:\n  "
                    + "\n  ".join(changed)
                    + "\nGive this one a folder of its own with --run-dir, or begin that one "
                    "again with --restart"
                )
        write_json(self.config, wanted)

    def clear(self) -> None:
        """Remove the run's files, and nothing else that lies in the folder."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for path in (self.metrics, self.config, self.evaluation, self.report, self.log):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let other processes in."""
        self._lock.close()

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
