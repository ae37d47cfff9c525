"""The Triton kernels under Triton's interpreter, in a process of their own, against torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
SCRIPT = """
import torch
from pipeline.masking import anchor_similarity
from pipeline.masking.triton_cluster import max_anchor_similarity, pack_visible

torch.manual_seed(0)
for shape, num_anchors in (((2, 35, 48), 3), ((1, 9, 147), 17)):
    patches = torch.randint(0, 256, shape, dtype=torch.uint8)
    patches[0, 1:3] = 255
    patches[0, 3] = patches[0, 4]
    anchors = torch.rand(shape[:2]).topk(min(num_anchors, shape[1]), dim=1).indices
    ours = max_anchor_similarity(patches, anchors)
    reference = anchor_similarity(patches, anchors).amax(dim=2)
    assert ours.isfinite().all()
    assert (ours - reference).abs().max() < 1e-5, (ours - reference).abs().max()
    assert (ours.gather(1, anchors) == 1).all()
    visible = torch.rand(shape[:2]) < 0.5
    visible[0, 0] = True
    packed, places, offsets = pack_visible(patches, visible, int(visible.sum()))
    assert (packed == patches[visible]).all()
    assert (places == visible.nonzero()[:, 1]).all()
    assert (offsets[1:] == visible.sum(dim=1).cumsum(0)).all()
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_equal_torch() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
