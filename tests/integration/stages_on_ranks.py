"""The run of test_stages.py on the ranks that torchrun starts: INDEX RUN_DIR."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # torchrun does not say where we are

from tests.integration.test_stages import run, two_stages

if __name__ == "__main__":
    sys.exit(run(two_stages(Path(sys.argv[1]), Path(sys.argv[2]))))
