"""A wheel that is built from the checkout works in an empty folder; a compiler is not required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEES_IT = """
import sys, pathlib
# An editable installation in this environment would give what the wheel lacks.
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
import tessera, torch
from tessera import open_loader, LoaderConfig, build_clip, load
from tessera.pipeline.decoding import open_decoder

folder = pathlib.Path(tessera.__file__).parent
assert folder == pathlib.Path(sys.argv[1]) / "tessera", folder
assert callable(load)
config = LoaderConfig(batch_size=4, image_size=32, patch_size=16)
with open_loader(sys.argv[2], config) as loader:
    batch = next(loader)
    print(loader.decoder_name, tuple(batch.patches.shape))
clip = build_clip("tessera-demo")
print(sum(p.numel() for p in clip.parameters()) > 0)
"""


def tracked() -> list[str]:
    """Files of the checkout that git does not ignore."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split() if (ROOT / name).exists()]


def wheel_of(folder: Path, **environment: str) -> Path:
    """Build in a copy of what git tracks, as the build leaves files behind; unpack the wheel."""
    source = folder / "source"
    for name in tracked():
        if not name.startswith(("tests/", "docs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "-q"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "-w", str(folder / "wheels")]
    built = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    (wheel,) = (folder / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return wheel


def run_from(folder: Path, index: Path) -> subprocess.CompletedProcess[str]:
    """The program above in an empty folder, with nothing but the wheel before the libraries."""
    empty = folder / "empty"
    empty.mkdir()
    installed = folder / "installed"
    return subprocess.run(
        [sys.executable, "-P", "-c", SEES_IT, str(installed), str(index)],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wheel_works_in_an_empty_folder(tmp_path: Path, coloured_index: Path) -> None:
    wheel = wheel_of(tmp_path)
    assert "-cp311-abi3-" in wheel.name
    folders = {path.name for path in (ROOT / "tessera").iterdir() if path.is_dir()}
    for name in tracked():  # templates, styles and prompts too
        if name.split("/")[0] in folders:
            assert (tmp_path / "installed" / "tessera" / name).exists(), name
    done = run_from(tmp_path, coloured_index)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["turbo", "(16,", "768)", "True"]
    assert "not built" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="DALI is for Linux")
def test_without_a_compiler_the_installation_succeeds(tmp_path: Path, coloured_index: Path) -> None:
    wheel_of(tmp_path, CC=str(tmp_path / "no-such-compiler"))
    done = run_from(tmp_path, coloured_index)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "dali-cpu"
    assert done.stderr.count("DALI decodes instead") == 1
    assert "pip install -c constraints.txt -e ." in done.stderr
