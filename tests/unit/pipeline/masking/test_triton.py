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
from tessera.pipeline.masking import ClusterMask, anchor_similarity, triton_cluster
from tessera.pipeline.masking.triton_cluster import max_anchor_similarity, pack_visible

torch.manual_seed(0)
for shape, num_anchors in (((2, 35, 48), 3), ((1, 9, 147), 17), ((3, 16, 12), 1)):
    patches = torch.randint(0, 256, shape, dtype=torch.uint8)
    patches[0, 1:3] = 255
    patches[0, 3] = patches[0, 4]
    patches[0, 5] = torch.tensor([123, 117, 104], dtype=torch.uint8).repeat(shape[2] // 3)
    anchors = torch.rand(shape[:2]).topk(min(num_anchors, shape[1]), dim=1).indices
    reference = anchor_similarity(patches, anchors)
    every = triton_cluster.anchor_similarity(patches, anchors)
    assert every.isfinite().all()
    assert (every - reference).abs().max() < 1e-5, (every - reference).abs().max()
    largest = max_anchor_similarity(patches, anchors)
    assert (largest == every.amax(dim=2)).all()
    assert (largest.gather(1, anchors) == 1).all()
    visible = torch.rand(shape[:2]) < 0.5
    visible[0, 0] = True
    packed, places, offsets = pack_visible(patches, visible, int(visible.sum()))
    assert (packed == patches[visible]).all()
    assert (places == visible.nonzero()[:, 1]).all()
    assert (offsets[1:] == visible.sum(dim=1).cumsum(0)).all()

# The chain: equal patches put every image's cut into a tie, which noise decides alike in both.
patches = torch.randint(0, 256, (4, 36, 48), dtype=torch.uint8)
patches[:, 12:] = patches[:, 12:13]
patches[3] = 255
noise = torch.rand(4, 36)
for mask in (ClusterMask(0.1), ClusterMask(0.1, group_size=2), ClusterMask(0.1, mode="topk")):
    anchors = mask.draw_anchors(patches, noise)
    # Rounded, since the last digits of the two may differ.
    ours = max_anchor_similarity(patches, anchors).mul(1e4).round()
    wanted = anchor_similarity(patches, anchors).amax(dim=2).mul(1e4).round()
    visible = mask.choose(ours, noise)
    assert (visible == mask.choose(wanted, noise)).all()
    packed, _, offsets = pack_visible(patches, visible, 72)
    assert int(offsets[-1]) == 72
    assert (packed == patches[visible]).all()
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
