"""Training needs what pyproject.toml lists and nothing of what downloads or tests need."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMPORTED_AS = {
    "open-clip-torch": "open_clip",
    "pillow": "PIL",
    "nvidia-dali-cuda130": "nvidia",
    "hanta": "HanTa",
}
"""Where the name of the package is not the name of the module."""
COME_ALONG = {"torchvision": "open_clip_torch", "triton": "torch", "markupsafe": "jinja2"}
"""Needed by a package of the list."""
ASKED_FOR = {"nltk", "aiohttp"}
"""Imported only where an option names it; the error says how to install it."""


def modules(requirements: list[str]) -> set[str]:
    names = [re.split(r"[<>=;\[ ]", each)[0].lower().replace("_", "-") for each in requirements]
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_what_training_imports_is_what_is_installed_for_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    allowed = modules(project["dependencies"]) | COME_ALONG.keys() | set(sys.stdlib_module_names)
    allowed |= (
        ASKED_FOR | modules(extras["watch"]) | modules(extras["rewrite"]) | modules(extras["tag"])
    )
    own = {path.stem for path in ROOT.iterdir()}
    packages = ("pipeline", "model", "training", "evaluation", "report", "recipes")
    files = [path for name in packages for path in (ROOT / name).rglob("*.py")]
    for path in [*files, ROOT / "train.py"]:
        assert not imported(path) - allowed - own, path


def test_the_downloader_is_not_among_what_training_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert not {"img2dataset", "pandas", "cv2", "aiohttp"} & modules(project["dependencies"])
    listed = (ROOT / "tools" / "download" / "requirements.txt").read_text("utf-8")
    assert "img2dataset" in listed
