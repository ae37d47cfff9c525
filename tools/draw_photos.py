"""Draws pictures that cost a JPEG decoder about what photos cost, and indexes them.

    python tools/draw_photos.py DIR --count 8192

For benchmarks on machines without photos: the demo's scenes at 640 x 480 pixels with a camera's
grain and quality 85, about 100 kB each. Writes DIR/shards and DIR/index.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
from PIL import Image
from tqdm import tqdm

from tessera.pipeline.index import ScanOptions, build_index
from tessera.pipeline.workers import map_in_processes
from tessera.recipes import demo_scenes
from tessera.training.environment import num_cores

_SIZE, _QUALITY, _GRAIN = (640, 480), 85, 14.0
_PER_SHARD = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_draw, argv)


def _draw(words: list[str]) -> dict[str, float]:
    parser = argparse.ArgumentParser(
        description=program.describe(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--count", type=int, default=8192, help="pictures to draw")
    arguments = parser.parse_args(words)
    if arguments.count < 1:
        parser.error("--count must be at least 1")
    folder = arguments.out / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        (folder / f"{number:05d}.tar", range(first, min(first + _PER_SHARD, arguments.count)))
        for number, first in enumerate(range(0, arguments.count, _PER_SHARD))
    ]
    with tqdm(total=arguments.count, desc="drawing", unit="img", disable=None) as bar:
        for num_drawn in map_in_processes(_write_shard, shards, min(num_cores(), len(shards))):
            bar.update(num_drawn)
    paths = [path for path, _ in shards]
    build_index(paths, arguments.out / "index", options=ScanOptions(captions="txt"))
    size = sum(path.stat().st_size for path in paths)
    print(f"photos     {arguments.count:,} of {size / arguments.count / 1000:,.0f} kB")
    return {"photos": arguments.count, "bytes_per_photo": size / arguments.count}


def _write_shard(shard: tuple[Path, range]) -> int:
    path, numbers = shard
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            picture, caption = draw(number)
            for suffix, data in (("jpg", picture), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return len(numbers)


def draw(number: int) -> tuple[bytes, str]:
    """A JPEG file and its caption, the same for the same number."""
    rng = demo_scenes.rng_of(0, "train", number, "photo")
    scene = demo_scenes.describe(0, "train", number)
    pixels = np.asarray(demo_scenes.draw(rng, scene, _SIZE), np.float32)
    grain = np.random.default_rng(number).normal(0, _GRAIN, pixels.shape)
    file = io.BytesIO()
    picture = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue(), demo_scenes.captions(rng, scene, 1, 1.0)[0]


if __name__ == "__main__":
    sys.exit(main())
