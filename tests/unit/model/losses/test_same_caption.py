"""Pairs with equal captions: negatives as published, ignored, or positives; held to plain sums."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.model.losses import LossConfig, build_loss
from tessera.model.losses.config import LossKind, SameCaption
from tessera.model.losses.same_caption import caption_keys, repeated_share

KEYS = torch.tensor([7, 3, 7, -1, 7, 3, 2, 9])
SAME = KEYS[:, None] == KEYS


def features() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(len(KEYS), 5, generator=generator), dim=1) for _ in range(2)
    )
    return images, texts, torch.tensor(9.0), torch.tensor(-4.0)


def plain_loss(kind: str, same_caption: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """By the definition, over the whole matrix in float64."""
    images, texts, scale, bias = inputs
    others = SAME & ~torch.eye(len(KEYS), dtype=torch.bool)
    logits = scale * images @ texts.T
    if kind == "siglip":
        is_yes = SAME if same_caption == "positive" else torch.eye(len(KEYS), dtype=torch.bool)
        terms = -F.logsigmoid((logits + bias) * torch.where(is_yes, 1.0, -1.0))
        return terms.masked_fill(others & (same_caption == "ignore"), 0).sum() / len(KEYS)
    if same_caption == "ignore":
        logits = logits.masked_fill(others, -torch.inf)
    if same_caption == "positive":
        target = SAME / SAME.sum(1, keepdim=True)
    else:
        target = torch.eye(len(KEYS), dtype=torch.float64)
    target = target.to(logits.dtype)
    chosen = [-(target * F.log_softmax(each, dim=1)).nan_to_num().sum(1).mean()
              for each in (logits, logits.T)]  # fmt: skip
    return sum(chosen, torch.zeros(())) / 2


@pytest.mark.parametrize("tile_size", [0, 1, 3, 64])
@pytest.mark.parametrize("same_caption", ["negative", "ignore", "positive"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_value_and_gradients_are_those_of_the_definition(
    kind: LossKind, same_caption: SameCaption, tile_size: int
) -> None:
    config = LossConfig(kind=kind, same_caption=same_caption, tile_size=tile_size)
    loss = build_loss(config, num_samples=8, steps_per_pass=1)
    inputs = [each.clone().requires_grad_() for each in features()]
    images, texts, scale, bias = inputs
    value = loss(images, texts, scale, logit_bias=bias, captions=KEYS)
    value.backward()
    wanted = [each.double().requires_grad_() for each in features()]
    expected = plain_loss(kind, same_caption, tuple(wanted))
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(inputs, wanted, strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tile_size", [0, 3])
def test_fastclip_ignores_equal_captions_in_its_estimates(tile_size: int) -> None:
    config = LossConfig(kind="sogclr", same_caption="ignore", tile_size=tile_size)
    loss = build_loss(config, num_samples=8, steps_per_pass=1)
    images, texts, scale, _ = features()
    loss(images, texts, scale, sample_ids=torch.arange(8), captions=KEYS)
    temperature = config.method().temperature
    gaps = (images @ texts.T - (images * texts).sum(1, keepdim=True)) / temperature
    expected = torch.stack([gaps[i][~SAME[i]].exp().mean().log() for i in range(8)])
    torch.testing.assert_close(loss.state_tensors()["log_u_image"], expected)


@pytest.mark.parametrize("kind", ["clip", "siglip", "sogclr", "fastclip_v2", "fastclip_v3"])
def test_a_batch_of_one_caption_leaves_no_negative_and_no_nan(kind: LossKind) -> None:
    loss = build_loss(LossConfig(kind=kind, same_caption="ignore"), num_samples=8, steps_per_pass=1)
    images, texts, scale, bias = (each.requires_grad_() for each in features())
    for step in range(3):
        value = loss(
            images, texts, scale, logit_bias=bias, sample_ids=torch.arange(8),
            captions=torch.zeros(8, dtype=torch.int64), step=step,
        )  # fmt: skip
        value.backward()
        assert value.isfinite()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="one positive"):
        LossConfig(kind="fastclip_v3", same_caption="positive")
    with pytest.raises(ValueError, match="label_smoothing"):
        LossConfig(same_caption="ignore", label_smoothing=0.1)
    loss = build_loss(LossConfig(same_caption="ignore"), num_samples=8, steps_per_pass=1)
    images, texts, scale, _ = features()
    with pytest.raises(ValueError, match="one caption of each image"):
        loss(images, torch.cat((texts, texts)), scale, captions=torch.cat((KEYS, KEYS)))
    with pytest.raises(ValueError, match="needs a key"):
        loss(images, texts, scale)


def test_keys_are_equal_for_equal_captions_alone() -> None:
    captions = [[1, 5, 2], [1, 2, 5], [1, 5, 2], [1, 5], [1], [1, 5, 5], [1, 5], [1, 5, 2]]
    tokens = torch.tensor([token for caption in captions for token in caption]).int()
    offsets = torch.tensor([0, *map(len, captions)]).cumsum(0).int()
    keys = caption_keys(tokens, offsets).tolist()
    for one, key in zip(captions, keys, strict=True):
        for other, its_key in zip(captions, keys, strict=True):
            assert (one == other) == (key == its_key)
    assert repeated_share(torch.tensor(keys)).item() == pytest.approx(5 / 8)
    assert repeated_share(torch.tensor([4])).item() == 0
