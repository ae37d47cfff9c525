"""The process in which img2dataset runs: `python -m tools.download.job_process JOB.json`.

It and every worker that it spawns end with their parent, whatever kills that. A worker that is
killed takes its shard with it, and img2dataset then waits for that shard for ever, so its death is
written to the log, where the supervisor reads it.
"""

from __future__ import annotations

import multiprocessing.pool
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tools.download.processes import die_with_parent, watch_parent

LOST = "TESSERA: a worker process was lost, exit status"
"""How the line that reports a killed worker begins."""
REFUSED = "TESSERA: refused:"
"""How the line begins that says why a job cannot be run."""
PARENT = "TESSERA_DOWNLOAD_PARENT"
"""Environment variable with the number of the process that must be the parent."""


def main() -> int:
    """Run the job that the first argument names; exit status 2: it cannot be run at all."""
    from tools.download.img2dataset_job import Job, run_job

    _report_lost_workers()
    try:
        run_job(Job.from_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except (ValueError, FileNotFoundError) as error:
        print(f"{REFUSED} {error}", flush=True)
        return 2
    return 0


def _begin(*, is_child: bool) -> None:
    """What this process and each of its children does before it imports anything large."""
    parent = os.environ.get(PARENT)
    if parent is not None and is_child:
        # Its parent is the pool, whose threads end before its workers do.
        watch_parent(int(parent))
    elif parent is not None:
        die_with_parent(int(parent))
    os.environ[PARENT] = str(os.getpid())  # as the children will see it
    # webdataset imports torch where it finds it, which makes a worker four times as large.
    sys.modules["torch"] = None  # type: ignore[assignment]


def _report_lost_workers() -> None:
    """Print a line whenever the pool notices that a worker ended otherwise than by itself."""
    pool: Any = multiprocessing.pool.Pool  # which has no public way to learn of it
    join = pool._join_exited_workers  # noqa: SLF001

    def report_and_join(workers: Sequence[BaseProcess]) -> bool:
        for worker in workers:
            if worker.exitcode not in (None, 0):
                print(f"{LOST} {worker.exitcode}", flush=True)
        return join(workers)

    pool._join_exited_workers = staticmethod(report_and_join)  # noqa: SLF001


if __name__ in {"__main__", "__mp_main__"}:  # the second is its name in a spawned child
    _begin(is_child=__name__ == "__mp_main__")
if __name__ == "__main__":
    sys.exit(main())
