"""The towers against open_clip's, and what packing promises."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.model import Clip, build_clip, clip_loss, open_clip_weights
from tessera.model.config import CLIP_PIXEL_MEAN, CLIP_PIXEL_STD
from tessera.model.execution import configure
from tessera.model.open_clip_config import from_open_clip
from tessera.pipeline.index.tokenizer import tokenize_prompts

CAPTIONS = ["a dog", "a photo of a very long cat asleep on a red mat", "snow, hills; and 3 skiers!"]

SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 24,
        "patch_size": 6,
        "width": 64,
        "layers": 3,
        "head_width": 32,
        "mlp_ratio": 2.1,
    },
    "text_cfg": {"context_length": 77, "width": 48, "heads": 3, "layers": 2},
}


def patchify(images: Tensor, side: int) -> Tensor:
    """[B, 3, S, S] to [B*N, 3*p*p], each patch (y, x, channel)."""
    grid = images.shape[-1] // side
    rows = images.unflatten(3, (grid, side)).unflatten(2, (grid, side))
    return rows.permute(0, 2, 4, 3, 5, 1).reshape(-1, 3 * side * side)


def pack_images(images: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    num_patches = (images.shape[-1] // side) ** 2
    batch_size = images.shape[0]
    positions = torch.arange(num_patches, dtype=torch.int32).repeat(batch_size)
    offsets = torch.arange(batch_size + 1, dtype=torch.int32) * num_patches
    return patchify(images, side), positions, offsets


def pack_captions(padded: Tensor) -> tuple[Tensor, Tensor]:
    lengths = padded.argmax(dim=1) + 1
    tokens = torch.cat([row[:n] for row, n in zip(padded, lengths, strict=True)])
    return tokens.int(), offsets_of(lengths.tolist())


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)


def tokenise(texts: list[str], context_length: int = 77) -> Tensor:
    return open_clip.tokenize(texts, context_length=context_length)


def matching_models(raw: dict[str, Any]) -> tuple[open_clip.CLIP, Clip]:
    """open_clip's model with no parameter left at zero or one, and ours with its weights."""
    torch.manual_seed(0)
    theirs = open_clip.CLIP(**copy.deepcopy(raw))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = build_clip(from_open_clip("small", raw))
    open_clip_weights.load(ours, theirs.state_dict())
    return theirs, ours


@pytest.fixture(scope="module")
def small() -> tuple[open_clip.CLIP, Clip]:
    return matching_models(SMALL)


@pytest.fixture
def demo() -> Clip:
    torch.manual_seed(1)
    return build_clip("tessera-demo").eval()


def random_batch(lengths: list[int], num_patches: int, patch_dim: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    positions = [torch.randperm(num_patches, generator=generator)[:n] for n in lengths]
    shape = (sum(lengths), patch_dim)
    patches = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return patches, torch.cat(positions).int(), offsets_of(lengths)


def test_vit_b_16_equals_open_clip() -> None:
    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-B-16", pretrained=None).eval()
    assert isinstance(theirs, open_clip.CLIP)
    ours = build_clip("ViT-B-16").eval()
    open_clip_weights.load(ours, theirs.state_dict())
    images, padded = torch.randn(2, 3, 224, 224), tokenise(CAPTIONS)
    with torch.no_grad():
        image_features = unit(ours.encode_image(*pack_images(images, 16)))
        torch.testing.assert_close(
            image_features, theirs.encode_image(images, normalize=True), atol=1e-5, rtol=0
        )
        text_features = unit(ours.encode_text(*pack_captions(padded)))
        torch.testing.assert_close(
            text_features, theirs.encode_text(padded, normalize=True), atol=1e-5, rtol=0
        )
    # Equal features would also pass if the towers ignored what they are shown.
    assert (image_features[0] - image_features[1]).abs().max() > 1e-3
    assert (text_features[0] - text_features[1]).abs().max() > 1e-3


@pytest.mark.parametrize("change", [{}, {"no_ln_pre": True}, {"patch_size": 8, "head_width": 16}])
def test_small_models_equal_open_clip_with_gradients(change: dict[str, Any]) -> None:
    raw = {**SMALL, "quick_gelu": not change, "vision_cfg": {**SMALL["vision_cfg"], **change}}
    theirs, ours = matching_models(raw)
    images, padded = torch.randn(3, 3, 24, 24), tokenise(CAPTIONS)
    features = theirs.encode_image(images, True), theirs.encode_text(padded, True)
    open_clip.ClipLoss()(*features, theirs.logit_scale.exp()).backward()
    packed = ours(*pack_images(images, raw["vision_cfg"]["patch_size"]), *pack_captions(padded))
    clip_loss(*packed).backward()
    torch.testing.assert_close(packed[0], features[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(packed[1], features[1], atol=1e-5, rtol=0)
    gradients = gradient_state(ours)
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        error = (gradients[name] - parameter.grad).norm() / parameter.grad.norm()
        # A key's bias shifts all logits of a query alike: its gradient is zero but for noise.
        assert error < 1e-4, f"{name}: {error:.2e}"


def gradient_state(clip: Clip) -> dict[str, Tensor]:
    """Gradients under open_clip's names, by way of a model that has them for weights."""
    holder = copy.deepcopy(clip)
    for target, source in zip(holder.parameters(), clip.parameters(), strict=True):
        assert source.grad is not None
        target.data = source.grad.clone()
    return open_clip_weights.dump(holder)


def test_packed_batch_equals_each_image_alone(demo: Clip) -> None:
    lengths = [5, 64, 1, 30]
    patches, positions, offsets = random_batch(lengths, 64, 192)
    with torch.no_grad():
        together = unit(demo.encode_image(patches, positions, offsets))
        alone = [
            unit(demo.encode_image(x, p, offsets_of([len(p)])))
            for x, p in zip(patches.split(lengths), positions.split(lengths), strict=True)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)


def test_packed_captions_equal_each_alone(demo: Clip) -> None:
    tokens, offsets = pack_captions(tokenise(CAPTIONS, 32))
    lengths = offsets.diff().tolist()
    with torch.no_grad():
        together = unit(demo.encode_text(tokens, offsets))
        alone = [unit(demo.encode_text(x, offsets_of([len(x)]))) for x in tokens.split(lengths)]
    assert len(set(lengths)) > 1
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)


def test_other_images_do_not_reach_an_image(demo: Clip) -> None:
    patches, positions, offsets = random_batch([20, 33, 7], 64, 192)
    changed = patches.clone()
    changed[:20] = 255 - changed[:20]
    changed[53:] = 0
    with torch.no_grad():
        before = unit(demo.encode_image(patches, positions, offsets))
        after = unit(demo.encode_image(changed, positions, offsets))
    torch.testing.assert_close(after[1], before[1], atol=1e-6, rtol=0)
    assert (after[0] - before[0]).abs().max() > 1e-4


def test_order_of_patches_does_not_matter_but_position_does(demo: Clip) -> None:
    patches, positions, offsets = random_batch([20, 33], 64, 192)
    order = torch.cat([torch.randperm(20), 20 + torch.randperm(33)])
    with torch.no_grad():
        before = unit(demo.encode_image(patches, positions, offsets))
        shuffled = unit(demo.encode_image(patches[order], positions[order], offsets))
        misplaced = unit(demo.encode_image(patches[order], positions, offsets))
    torch.testing.assert_close(shuffled, before, atol=1e-5, rtol=0)
    assert (misplaced - before).abs().max() > 1e-4


def test_later_tokens_do_not_change_an_earlier_end(small: tuple[open_clip.CLIP, Clip]) -> None:
    """A caption cut to fewer tokens equals open_clip's on the same cut caption."""
    theirs, ours = small
    long = tokenise(["a long caption " * 30], 77)
    assert long[0, -1] == 49407
    short = torch.zeros_like(long)
    short[:, :12] = long[:, :12]
    short[:, 11] = 49407
    with torch.no_grad():
        for padded in (long, short):
            torch.testing.assert_close(
                unit(ours.encode_text(*pack_captions(padded))),
                theirs.encode_text(padded, normalize=True),
                atol=1e-5,
                rtol=0,
            )


def test_uint8_patches_are_normalised_inside(demo: Clip) -> None:
    patches, positions, offsets = random_batch([20, 33], 64, 192)
    pixels = patches.float().unflatten(1, (-1, 3)) / 255
    by_hand = (pixels - torch.tensor(CLIP_PIXEL_MEAN)) / torch.tensor(CLIP_PIXEL_STD)
    with torch.no_grad():
        inside = unit(demo.encode_image(patches, positions, offsets))
        outside = unit(demo.encode_image(by_hand.flatten(1), positions, offsets))
    torch.testing.assert_close(inside, outside, atol=1e-6, rtol=0)
    assert open_clip.OPENAI_DATASET_MEAN == CLIP_PIXEL_MEAN
    assert open_clip.OPENAI_DATASET_STD == CLIP_PIXEL_STD


def test_bfloat16_is_close_and_trains(demo: Clip) -> None:
    batch = random_batch([20, 64, 33], 64, 192)
    captions = pack_captions(tokenise(CAPTIONS, 32))
    exact = demo(*batch, *captions)
    configure(demo, compute_dtype=torch.bfloat16, residual_dtype=torch.float32)
    rough = demo(*batch, *captions)
    loss = clip_loss(*rough)
    assert rough[0].dtype == rough[1].dtype == loss.dtype == torch.float32
    loss.backward()
    for i in range(2):
        assert (exact[i] * rough[i]).sum(dim=-1).min() > 0.999
    assert all(p.grad is not None and p.grad.isfinite().all() for p in demo.parameters())


def test_compiled_model_is_the_same(demo: Clip) -> None:
    batch = (*random_batch([20, 64, 33], 64, 192), *pack_captions(tokenise(CAPTIONS, 32)))
    compiled = torch.compile(demo, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*batch), demo(*batch))


def test_start_is_open_clips() -> None:
    raw = open_clip_weights.open_clip_config(build_clip("tessera-xs-16").config)
    theirs = open_clip.CLIP(**raw).state_dict()
    ours = open_clip_weights.dump(build_clip("tessera-xs-16"))
    for name, value in theirs.items():
        if value.numel() > 1:
            # 6 standard errors of a standard deviation over n values
            slack = 6 * value.std() / (2 * value.numel()) ** 0.5 + 1e-9
            assert abs(ours[name].std() - value.std()) <= slack, name
            assert abs(ours[name].mean() - value.mean()) <= 2 * slack, name
        else:
            torch.testing.assert_close(ours[name], value)


def test_config_object_builds_and_forward_returns_unit_features(demo: Clip) -> None:
    config = dataclasses.replace(demo.config, embed_dim=40, init_logit_scale=1.0)
    clip = build_clip(config)
    batch = random_batch([20, 33, 1], 64, 192)
    image, text, scale = clip(*batch, *pack_captions(tokenise(CAPTIONS, 32)))
    assert image.shape == text.shape == (3, 40)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(scale, torch.tensor(1.0).exp())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": torch.zeros(5, 7)}, r"patches must be \[T, 192\]"),
        ({"patches": torch.zeros(5, 192, dtype=torch.int64)}, "uint8 or float"),
        ({"positions": torch.zeros(4, dtype=torch.int32)}, r"positions must be \[5\]"),
        ({"positions": torch.zeros(5)}, "positions must be int32"),
        ({"offsets": torch.tensor([0, 5])}, "int32"),
        ({"offsets": torch.tensor([0, 2], dtype=torch.int32)}, "must go from 0 to"),
        ({"offsets": torch.tensor([0], dtype=torch.int32)}, "B at least 1"),
    ],
)
def test_wrong_images_are_refused(demo: Clip, change: dict[str, Tensor], message: str) -> None:
    batch = {
        "patches": torch.zeros(5, 192),
        "positions": torch.arange(5, dtype=torch.int32),
        "offsets": torch.tensor([0, 2, 5], dtype=torch.int32),
    } | change
    with pytest.raises(ValueError, match=message):
        demo.encode_image(*batch.values())


@pytest.mark.parametrize("lengths", [[33], [3, 0, 2]])
def test_captions_too_long_or_empty_are_refused(demo: Clip, lengths: list[int]) -> None:
    tokens = torch.ones(sum(lengths), dtype=torch.int32)
    with pytest.raises(ValueError, match="must have 1 to 32 tokens"):
        demo.encode_text(tokens, offsets_of(lengths))


def test_a_caption_is_read_at_its_first_end_token_as_open_clip_reads_it() -> None:
    captions = [
        "a dog <end_of_text> and a cat",
        "<end_of_text>",
        "two <start_of_text> birds",
        "an <END_OF_TEXT><end_of_text> owl on a " + 80 * "very " + "long branch",
        "a plain caption",
    ]
    reference = open_clip.model.CLIP(**copy.deepcopy(SMALL)).eval()
    ours = Clip(from_open_clip("small", copy.deepcopy(SMALL))).eval()
    open_clip_weights.load(ours, reference.state_dict())
    tokens, offsets = (torch.from_numpy(each) for each in tokenize_prompts(captions, 77))
    with torch.no_grad():
        expected = reference.encode_text(open_clip.get_tokenizer("ViT-B-16")(captions))
        found = ours.encode_text(tokens, offsets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
