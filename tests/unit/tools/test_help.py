"""--help is answered at once: no program of data, pages or comparisons waits for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = (
    "add_captions", "compare", "evaluate", "index_shards", "make_shards", "search",
    "select_samples",
)  # fmt: skip
CODE = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "open_clip", "matplotlib", "scipy"} & set(sys.modules)
sys.exit(f"--help imports {heavy}" if heavy else 0)
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_imports_nothing_heavy(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, f"tools/{name}.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert "--json" in done.stdout
