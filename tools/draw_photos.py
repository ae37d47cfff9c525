"""Draws pictures that cost a JPEG decoder about what photos cost, and indexes them.

    python tools/draw_photos.py DIR --count 8192

For benchmarks on machines without photos. A picture is noise whose amplitude falls with its
frequency, as that of photos does, at 640 x 480 pixels and quality 85: about 100 kB. There is
nothing in it to learn. Writes DIR/shards and DIR/index.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
from PIL import Image

from tessera.pipeline.index import ScanOptions, build_index
from tessera.training.environment import num_cores

_WIDTH, _HEIGHT, _QUALITY = 640, 480, 85
_PER_SHARD = 512
_OCTAVES = ((4, 60.0), (16, 30.0), (64, 14.0), (256, 7.0))
"""Cells along the width, and the standard deviation of their grey values."""
_GRAIN = 4.0
_WORDS = ("a", "photo", "of", "some", "red", "green", "small", "old", "street", "house", "tree")


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
    shards = arguments.out / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    firsts = range(0, arguments.count, _PER_SHARD)
    paths = [shards / f"{number:05d}.tar" for number in range(len(firsts))]
    stops = [min(first + _PER_SHARD, arguments.count) for first in firsts]
    with ProcessPoolExecutor(num_cores()) as pool:
        list(pool.map(write_shard, paths, firsts, stops))
    build_index(paths, arguments.out / "index", options=ScanOptions(captions="txt"))
    size = sum(path.stat().st_size for path in paths)
    print(f"photos     {arguments.count:,} of {size / arguments.count / 1000:,.0f} kB")
    return {"photos": arguments.count, "bytes_per_photo": size / arguments.count}


def write_shard(path: Path, first: int, stop: int) -> None:
    """Write the pictures `first` .. `stop` - 1 into a tar."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(first, stop):
            for suffix, data in (("jpg", draw(number)), ("txt", caption(number).encode())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def draw(number: int) -> bytes:
    """A picture as a JPEG file; the same number draws the same one."""
    generator = np.random.default_rng(number)
    pixels = np.full((_HEIGHT, _WIDTH, 3), 128.0, dtype=np.float32)
    for cells, deviation in _OCTAVES:
        shape = (cells * _HEIGHT // _WIDTH + 1, cells)
        grey = generator.normal(0, deviation, shape)[..., None]
        noise = np.clip(128 + grey + generator.normal(0, deviation / 3, (*shape, 3)), 0, 255)
        small = Image.fromarray(noise.astype(np.uint8))
        pixels += np.asarray(small.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)) - 128.0
    pixels += generator.normal(0, _GRAIN, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def caption(number: int) -> str:
    """Some words, between 4 and 20, as long as CC12M's captions are on average."""
    generator = np.random.default_rng([number, 1])
    return " ".join(generator.choice(_WORDS, generator.integers(4, 21)))


if __name__ == "__main__":
    sys.exit(main())
