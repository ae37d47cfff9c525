"""What machine is this, and which versions are installed?

    python tools/acceptance/machine.py

Prints one JSON line.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the packages lie in the checkout

from training.environment import machine

_FIELDS = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"


def main() -> int:
    """Run the tool; returns its exit status."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {**machine(device), "cuda": torch.version.cuda}
    if device.type == "cuda" and shutil.which("nvidia-smi"):
        words = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader"]
        answer = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        values = [value.strip() for value in answer.stdout.split(",")]
        found |= dict(zip(_FIELDS.split(","), values, strict=False))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
