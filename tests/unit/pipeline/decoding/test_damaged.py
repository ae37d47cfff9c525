"""Thousands of damaged files: a reason for each that fails, and the process stays alive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
DAMAGE = """
import numpy as np
from tessera.pipeline.decoding import open_decoder
from tests.decoder_pictures import encode, photo, with_orientation

generator = np.random.default_rng({seed})
whole = [
    encode(photo(97, 70, seed=1), subsampling=2),
    encode(photo(160, 121, seed=2), subsampling=0, progressive=True),
    encode(photo(121, 160, seed=3), restart_marker_blocks=3),
    with_orientation(encode(photo(130, 90, seed=4), subsampling=1), 6),
    encode(photo(90, 90, seed=5, mode="L"), optimize=True),
    encode(photo(90, 90, seed=6, mode="CMYK")),
]
decoder = open_decoder("turbo", image_size=32, batch_size=64, num_threads=2)
num_failed = num_whole = 0
for _ in range({rounds}):
    files, cut = [], []
    for number in range(64):
        data = bytearray(whole[number % len(whole)])
        kind = generator.integers(3)
        if kind == 0:
            del data[int(generator.integers(len(data) * 3 // 4)):]
        elif kind == 1:
            for place in generator.integers(2, len(data), int(generator.integers(1, 20))):
                data[place] ^= 1 << int(generator.integers(8))
        else:
            start = int(generator.integers(2, len(data)))
            data[start:start + 40] = generator.bytes(int(generator.integers(80)))
        files.append(bytes(data))
        cut.append(kind == 0)
    windows = np.tile(np.array([[0, 0, 70, 70]], dtype=np.int32), (64, 1))
    windows[::2] = [3, 5, 20, 40]
    decoded = decoder.decode(files, windows)
    assert all(decoded.failures.values())
    expected = decoder.decode([whole[n % len(whole)] for n in range(64)], windows)
    assert expected.failures == {{}}
    for place, was_cut in enumerate(cut):
        if was_cut and place not in decoded.failures:  # the cut lies behind the window
            num_whole += 1
            assert (decoded.images[place] == expected.images[place]).all(), place
    num_failed += len(decoded.failures)
assert num_failed > {rounds} * 12, num_failed
assert num_whole > {rounds}, num_whole
"""


def test_damage_never_ends_the_process() -> None:
    program = DAMAGE.format(seed=1, rounds=60)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-2000:]
