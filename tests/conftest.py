"""Data sets that tests make for themselves, and the real photos where they are at hand."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.pipeline.index import ScanOptions, build_index

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 60, 220),
    "yellow": (230, 220, 40),
    "white": (240, 240, 240),
    "purple": (150, 40, 180),
}

MakeShards = Callable[..., list[Path]]


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach the programs that tests start, also where a shell runs the tests in the
    background: it would have them ignore the signal, and they would pass that on."""
    if not hasattr(config, "workerinput"):  # once, before the workers start
        build_extension()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def build_extension() -> None:
    """Have the C extension in the checkout, of the sources as they are now."""
    built = ROOT / "tessera" / "_native.abi3.so"
    sources = [ROOT / "pyproject.toml", *(ROOT / "native").glob("*.[ch]")]
    if built.exists() and built.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return
    with tempfile.TemporaryDirectory(dir=ROOT / "tessera") as folder:
        command = [sys.executable, "-W", "ignore", "-c", "import setuptools; setuptools.setup()"]
        command += ["-q", "build_ext", "--build-lib", folder, "--build-temp", f"{folder}/objects"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        for path in (Path(folder) / "tessera").iterdir():
            path.replace(built)


def jpeg_bytes(number: int, size: tuple[int, int] = (80, 64)) -> bytes:
    """A noisy picture in the colour that its number stands for."""
    colour = list(COLOURS.values())[number % len(COLOURS)]
    noise = np.random.default_rng(number).normal(0, 30, (size[1], size[0], 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def caption_of(number: int) -> str:
    """The caption of a picture, which names its colour and its number."""
    return f"a {list(COLOURS)[number % len(COLOURS)]} picture with the number {number}"


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """A tar of (name, bytes)."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample_members(number: int) -> list[tuple[str, bytes]]:
    """The files of one good sample."""
    key = f"{number:09d}"
    caption = caption_of(number)
    texts = json.dumps({"captions": [caption, caption + ", seen again"]})
    return [
        (f"{key}.jpg", jpeg_bytes(number)),
        (f"{key}.txt", caption.encode()),
        (f"{key}.json", texts.encode()),
        (f"{key}.cls", str(number % len(COLOURS)).encode()),
    ]


@pytest.fixture(scope="session")
def coloured_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 96 coloured pictures in three shards, with labels and class names."""
    folder = tmp_path_factory.mktemp("coloured")
    shards = folder / "shards"
    shards.mkdir()
    for shard in range(3):
        members = [m for n in range(shard * 32, shard * 32 + 32) for m in sample_members(n)]
        write_tar(shards / f"{shard:05d}.tar", members)
    (shards / "classnames.txt").write_text("\n".join(COLOURS) + "\n", encoding="utf-8")
    (shards / "zeroshot_classification_templates.txt").write_text("a {c} picture\n", "utf-8")
    options = ScanOptions(captions="json:captions")
    build_index(sorted(shards.glob("*.tar")), folder / "index", options=options)
    return folder / "index"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos; tests that need it are skipped where it is absent."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("TESSERA_DATA", root.parent / "shared" / "data"))
    if not (folder / "flickr8k-dev").is_dir():
        pytest.skip(f"no real photos at {folder}: set TESSERA_DATA to their folder")
    return folder
