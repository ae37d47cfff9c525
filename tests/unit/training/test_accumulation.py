"""Cut into chunks, a batch gives the gradients that it gives whole."""

from dataclasses import replace

import pytest
import torch

from tessera.model import build_clip
from tessera.model.config import AdapterConfig, clip_config
from tessera.model.losses import DistillationLoss, LossConfig, build_loss
from tessera.model.losses.ranks import Ranks
from tessera.pipeline import PackedBatch
from tessera.training.accumulation import backward_in_chunks, encode, encode_in_chunks, split
from tessera.training.opening import architecture_of
from tessera.training.parallel import bare
from tests.unit.training.test_config import small

KINDS = ("clip", "siglip", "sogclr", "isogclr", "fastclip_v3")


def batch(num_pairs: int, patch_dim: int, num_patches: int) -> PackedBatch:
    """Random pixels and words; every image and caption of another length."""
    torch.manual_seed(3)
    visible = torch.randint(1, num_patches + 1, (num_pairs,))
    words = torch.randint(2, 9, (num_pairs,))
    offsets = [torch.cat([torch.zeros(1), n.cumsum(0)]).int() for n in (visible, words)]
    places = [torch.randperm(num_patches)[: int(n)] for n in visible]
    return PackedBatch(
        patches=torch.randint(0, 256, (int(visible.sum()), patch_dim), dtype=torch.uint8),
        positions=torch.cat(places).int(),
        image_offsets=offsets[0],
        tokens=torch.randint(1, 400, (int(words.sum()),), dtype=torch.int32),
        text_offsets=offsets[1],
        sample_ids=torch.randperm(50)[:num_pairs],
    )


def test_chunks_hold_the_pairs_of_the_batch() -> None:
    whole = batch(8, 12, 9)
    chunks = split(whole, 4)
    for chunk in chunks:
        chunk.check()
        assert chunk.num_samples == 2
    for name in ("patches", "positions", "tokens", "sample_ids"):
        joined = torch.cat([getattr(chunk, name) for chunk in chunks])
        assert torch.equal(joined, getattr(whole, name))
    with pytest.raises(ValueError, match="accumulation 3"):
        split(whole, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_whole_batch(kind: str) -> None:
    config = small()
    config = replace(config, model="tessera-demo", loss=replace(LossConfig(), kind=kind))
    torch.manual_seed(0)
    clip = build_clip(architecture_of(config)).double()
    vision = clip.config.vision
    pairs = batch(6, vision.patch_dim, vision.num_patches)
    found = []
    for num_chunks in (1, 3):
        loss = build_loss(config.loss, num_samples=50, steps_per_pass=5)
        chunks = split(pairs, num_chunks)
        clip.zero_grad()
        features = encode(clip, pairs) if num_chunks == 1 else encode_in_chunks(clip, chunks)
        value = loss(
            features.images,
            features.texts,
            features.scale.float(),
            logit_bias=None if features.bias is None else features.bias.float(),
            sample_ids=pairs.sample_ids,
        )
        value.backward()
        if num_chunks > 1:
            backward_in_chunks(clip, chunks, features)
        gradients = {n: p.grad.clone() for n, p in clip.named_parameters() if p.grad is not None}
        found.append((value.item(), gradients))
    (whole_value, whole), (chunk_value, cut) = found
    assert chunk_value == pytest.approx(whole_value, rel=1e-6)
    assert bare(clip) is clip
    for name, gradient in whole.items():
        error = (cut[name] - gradient).norm() / (gradient.norm() + 1e-12)
        assert error < 1e-5, name


def test_chunks_of_several_texts_teach_an_adapter_as_the_whole_batch_does() -> None:
    """A teacher has a feature for every text, where an image has one."""
    adapter = AdapterConfig(embedding_dim=8, layers=1, mlp_ratio=2.0, replaces_text=False)
    torch.manual_seed(0)
    clip = build_clip(replace(clip_config("tessera-demo"), adapter=adapter))
    assert clip.adapter is not None
    clip.distilling = True
    clip.requires_grad_(False)
    clip.adapter.requires_grad_(True)
    patch_dim, num_patches = clip.config.vision.patch_dim, clip.config.vision.num_patches
    images, texts = (batch(count, patch_dim, num_patches) for count in (4, 8))
    pairs = replace(
        images,
        tokens=texts.tokens,
        text_offsets=texts.text_offsets,
        text_embeddings=torch.randn(8, 8),
    )
    found = []
    for num_chunks in (1, 2):
        chunks = split(pairs, num_chunks)
        clip.zero_grad()
        features = encode(clip, pairs) if num_chunks == 1 else encode_in_chunks(clip, chunks)
        DistillationLoss(Ranks())(features.images, features.texts, features.scale).backward()
        if num_chunks > 1:
            backward_in_chunks(clip, chunks, features)
        found.append([p.grad for p in clip.adapter.parameters()])
    torch.testing.assert_close(found[1], found[0])
