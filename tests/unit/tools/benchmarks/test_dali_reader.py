"""The graph behind nvJPEG's limit, run on the CPU: whole pictures, one after the other, no end."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tessera.tools.benchmarks.dali_reader import full_decode_graph
from tests.conftest import jpeg_bytes


def test_all_pictures_are_decoded_whole_again_and_again() -> None:
    pytest.importorskip("nvidia.dali")
    files = [jpeg_bytes(number, size=(64 + 16 * number, 48)) for number in range(3)]
    graph = full_decode_graph(files, batch_size=2, num_threads=1, device="cpu")
    seen = [np.asarray(image) for _ in range(3) for image in graph.run()[0]]
    for number, found in enumerate(seen):
        expected = np.asarray(Image.open(io.BytesIO(files[number % 3])).convert("RGB"))
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 3
