"""Edges, the balanced matching, and the mask that is made of them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tessera.pipeline.masking import ClusterMask, EdgeAwareMask, PatchEmbedding, anchor_similarity
from tessera.pipeline.masking.edge_aware import balanced_matching, edge_strength
from tessera.pipeline.patches import patchify, unpatchify


def slow_edges(image: np.ndarray, side: int) -> np.ndarray:
    """Sobel of [H, W, 3] by the two 3x3 kernels, and its mean in each patch."""
    bright = np.pad(image.astype(np.float64).sum(axis=2), 1, mode="edge")
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    height, width = image.shape[:2]
    steps = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            window = bright[y : y + 3, x : x + 3]
            steps[y, x] = abs((window * kernel).sum()) + abs((window * kernel.T).sum())
    tiles = steps.reshape(height // side, side, width // side, side)
    return tiles.mean(axis=(1, 3)).ravel()


@pytest.mark.parametrize(("grid", "side"), [((3, 3), 7), ((2, 5), 4), ((4, 3), 1)])
def test_edges_are_sobels_over_the_whole_image(draw_pictures, grid, side) -> None:
    patches = draw_pictures(3, grid, side)
    wanted = [slow_edges(image.numpy(), side) for image in unpatchify(patches, grid)]
    found = edge_strength(patches, grid)
    assert np.allclose(found.numpy(), np.stack(wanted), rtol=1e-6, atol=0)
    as_floats = edge_strength(patches.float(), grid)
    assert torch.allclose(as_floats, found, rtol=1e-5)


def test_an_edge_between_two_patches_counts_for_both() -> None:
    image = torch.zeros(1, 16, 32, 3, dtype=torch.uint8)
    image[:, :, 16:] = 200
    strength = edge_strength(patchify(image, 8), (2, 4)).view(2, 4)
    assert (strength[:, 1:3] > 0).all()
    assert (strength[:, [0, 3]] == 0).all()


def slow_matching(similarity: np.ndarray, iterations: int = 5000) -> np.ndarray:
    """Sinkhorn in the log domain, float64, by default until nothing moves; [N, A]."""
    logits = similarity.astype(np.float64) / 0.1
    share = np.log(logits.shape[0] / logits.shape[1])
    anchor = np.zeros((1, logits.shape[1]))
    for _ in range(iterations):
        patch = -np.logaddexp.reduce(logits + anchor, axis=1, keepdims=True)
        anchor = share - np.logaddexp.reduce(logits + patch, axis=0, keepdims=True)
    return np.exp(logits + anchor - np.logaddexp.reduce(logits + anchor, axis=1, keepdims=True))


def test_matching_is_the_transport_plan() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = (0.4 * torch.randn(3, 60, 6, generator=generator)).tanh()
    plan = balanced_matching(similarity)
    wanted = np.stack([slow_matching(each.numpy()) for each in similarity])
    assert np.abs(plan.numpy() - wanted).max() < 1e-3
    assert (plan.sum(dim=2) - 1).abs().max() < 1e-5, "a patch gives all of its mass"
    assert (plan.sum(dim=1) / 10 - 1).abs().max() < 1e-3, "anchors get equal shares"


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_matching_of_equal_similarities_is_uniform(value: float) -> None:
    plan = balanced_matching(torch.full((2, 30, 5), value))
    assert torch.allclose(plan, torch.tensor(0.2))


def test_matching_shares_a_crowd_out() -> None:
    """All patches are nearest to the first anchor; it still gets only its half."""
    similarity = torch.tensor([0.9, 0.7]).repeat(1, 40, 1)
    similarity[:, :, 1] += torch.linspace(-0.1, 0.1, 40)
    plan = balanced_matching(similarity)
    assert abs(float(plan[0, :, 0].sum()) - 20) < 0.5
    assert (plan[0, :, 1].diff() > 0).all(), "those that resemble the second most go to it"


def test_anchors_keep_away_from_edges(draw_pictures) -> None:
    patches = draw_pictures(20, (8, 8), 8)
    noise = torch.rand(20, 64, generator=torch.Generator().manual_seed(1))
    strength = edge_strength(patches)
    mask = EdgeAwareMask(anchor_ratio=0.1, candidate_ratio=0.5)
    anchors = mask.draw_anchors(patches, noise)
    assert anchors.shape == (20, 7)
    assert all(len(set(places)) == 7 for places in anchors.tolist())
    median = strength.median(dim=1, keepdim=True).values
    assert (strength.gather(1, anchors) <= median).all()
    assert (anchors % 8 < 4).float().mean() > 0.8, "the right half is noisy where not saturated"
    anywhere = EdgeAwareMask(anchor_ratio=0.1, candidate_ratio=1.0).draw_anchors(patches, noise)
    assert (anywhere == ClusterMask(anchor_ratio=0.1).draw_anchors(patches, noise)).all()


def test_anchors_are_drawn_among_all_candidates(draw_pictures) -> None:
    patches = draw_pictures(1, (4, 4), 8).expand(500, -1, -1)
    noise = torch.rand(500, 16, generator=torch.Generator().manual_seed(2))
    mask = EdgeAwareMask(anchor_ratio=0.1, candidate_ratio=0.5)
    counts = mask.draw_anchors(patches, noise).flatten().bincount(minlength=16)
    assert (counts > 0).sum() == 8
    assert counts[counts > 0].min() > 90, "2 of 8 in 500 images is 125 each"


def test_few_candidates_still_give_all_anchors(draw_pictures) -> None:
    patches = draw_pictures(2, (5, 5), 4)
    mask = EdgeAwareMask(anchor_ratio=0.3, candidate_ratio=0.01)
    anchors = mask.draw_anchors(patches, torch.rand(2, 25))
    weakest = edge_strength(patches).argsort(dim=1)[:, :8]
    assert (anchors.sort(dim=1).values == weakest.sort(dim=1).values).all()


def test_similarity_is_the_mean_of_correlation_and_plan(draw_pictures) -> None:
    patches = draw_pictures(3, (8, 8), 8)
    noise = torch.rand(3, 64, generator=torch.Generator().manual_seed(10))
    mask = EdgeAwareMask(anchor_ratio=0.05)
    anchors = mask.draw_anchors(patches, noise)
    alike = anchor_similarity(patches, anchors)
    plan = torch.from_numpy(np.stack([slow_matching(each.numpy(), 20) for each in alike]))
    wanted = ((alike + plan) / 2).amax(dim=2).scatter(1, anchors, 1.0)
    assert (mask.similarity(patches, noise) - wanted).abs().max() < 1e-4
    nearest = (alike + plan).argmax(dim=2)
    assert (mask.clusters(patches, noise).members == nearest).float().mean() > 0.99


def test_patches_with_edges_stay_more_often(draw_pictures) -> None:
    patches = draw_pictures(40, (8, 8), 8)
    noise = torch.rand(40, 64, generator=torch.Generator().manual_seed(3))
    visible = EdgeAwareMask(anchor_ratio=0.05).visible(patches, noise)
    assert int(visible.sum()) == 40 * 32
    halves = visible.view(40, 8, 2, 4).float().mean(dim=(0, 1, 3))
    assert halves[1] > halves[0] + 0.2
    assert not visible.gather(1, EdgeAwareMask(0.05).draw_anchors(patches, noise)).any()


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (123, 117, 104), (9, 200, 30)])
@pytest.mark.parametrize("mode", ["budget", "topk", "fill"])
def test_flat_images_are_masked_at_random(colour: tuple[int, int, int], mode) -> None:
    patches = torch.tensor(colour, dtype=torch.uint8).repeat(16).expand(300, 36, 48)
    noise = torch.rand(300, 36, generator=torch.Generator().manual_seed(4))
    mask = EdgeAwareMask(min_mask_ratio=0.5, mode=mode)
    assert mask.similarity(patches, noise).isfinite().all()
    drawn = mask.draw_anchors(patches, noise).flatten().bincount(minlength=36)
    assert drawn.min() > 5, "600 anchors over 36 places; equal edges do not favour a place"
    share = mask.visible(patches, noise).float().mean(dim=0)
    assert share.mean() == 0.5
    assert share.min() > 0.3
    assert share.max() < 0.7


def test_the_noise_decides_and_nothing_else(draw_pictures) -> None:
    patches = draw_pictures(6, (6, 6), 8)
    mask = EdgeAwareMask()
    seeded = [mask(patches, generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6)]
    assert (seeded[0] == seeded[1]).all()
    assert (seeded[0] != seeded[2]).any()
    noise = torch.rand(6, 36)
    turned = torch.tensor([3, 1, 5, 0, 4, 2])
    again = mask.visible(patches[turned], noise[turned])
    assert (again == mask.visible(patches, noise)[turned]).all()


def test_thresholds_and_embeddings_are_those_of_cluster_masks(draw_pictures) -> None:
    patches = draw_pictures(60, (7, 7), 4)
    noise = torch.rand(60, 49, generator=torch.Generator().manual_seed(7))
    mask = EdgeAwareMask(0.1, 0.5, 0.2, mode="threshold")
    found = mask.calibrate([mask.similarity(patches, noise)])
    assert isinstance(found, EdgeAwareMask)
    assert abs(float(found.visible(patches, noise).float().mean()) - 0.5) < 0.01
    embedding = PatchEmbedding(num_steps=2)
    mixed = EdgeAwareMask(0.1, embedding=embedding)
    assert (mixed.similarity(patches, noise) == mask.similarity(patches, noise)).all()
    embedding.update(torch.randn(8, 48, generator=torch.Generator().manual_seed(8)), step=1)
    similarity = mixed.similarity(patches, noise)
    assert (similarity != mask.similarity(patches, noise)).any()
    assert (similarity.gather(1, mixed.draw_anchors(patches, noise)) == 1).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="candidate_ratio"):
        EdgeAwareMask(candidate_ratio=0.0)
    with pytest.raises(ValueError, match="pass grid"):
        EdgeAwareMask()(torch.zeros(1, 24, 12))
    with pytest.raises(ValueError, match="square patch"):
        EdgeAwareMask()(torch.zeros(1, 16, 10))


def test_photos_keep_more_of_their_edges(real_data: Path) -> None:
    patches = _photos(min((real_data / "flickr8k-dev").glob("*.tar")), 48)
    noise = torch.rand(48, 196, generator=torch.Generator().manual_seed(9))
    strength = edge_strength(patches)
    share = strength / strength.sum(dim=1, keepdim=True)
    kept = [
        float((share * mask.visible(patches, noise)).sum(dim=1).mean())
        for mask in (ClusterMask(0.05), EdgeAwareMask(0.05))
    ]
    assert kept[1] > kept[0] + 0.01


def _photos(shard: Path, count: int) -> Tensor:
    with tarfile.open(shard) as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")][:count]
        files = [tar.extractfile(name) for name in names]
        pictures = [Image.open(io.BytesIO(f.read())).convert("RGB") for f in files if f]
    pixels = np.stack([np.asarray(picture.resize((224, 224))) for picture in pictures])
    return patchify(torch.from_numpy(pixels), 16)
