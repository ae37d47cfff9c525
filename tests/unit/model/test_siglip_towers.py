"""SigLIP's models held to open_clip's: attention pooling, no class token, a bias on the logits."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch.nn.functional import fold

from tessera.model import build_clip, open_clip_weights
from tessera.model.clip import Clip
from tessera.model.config import clip_config
from tessera.model.open_clip_config import from_open_clip, open_clip_config
from tessera.model.positions import resize_image_positions

SIGLIP = ("ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256", "ViT-SO400M-14-SigLIP",
          "ViT-SO400M-16-SigLIP2-256", "ViT-gopt-16-SigLIP2-256")  # fmt: skip
"""One of each shape of tower and kind of activation."""
PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TEXT = {
    "context_length": 16, "vocab_size": 99, "hf_tokenizer_name": "some/tokenizer", "width": 192,
    "heads": 3, "layers": 2, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}  # fmt: skip
SMALL = {
    "embed_dim": 192,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": TEXT,
}
"""A SigLIP of timm's smallest plain ViT, but for the class token, which the fixture takes away."""


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Clip]:
    import timm

    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **options: create(
            name, **{"class_token": False, "depth": 2, "img_size": 64} | options
        ),
    )
    torch.manual_seed(0)
    theirs = open_clip.CustomTextCLIP(
        **{key: value for key, value in SMALL.items() if key != "custom_text"}
    ).eval()
    for parameter in theirs.parameters():  # biases, too, shall matter
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    clip = Clip(from_open_clip("small", SMALL, PIXELS))
    open_clip_weights.load(clip, theirs.state_dict())
    return theirs, clip.eval()


def packed(clip: Clip, visible: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.cat(visible).int()
    lengths = torch.tensor([0, *(len(each) for each in visible)])
    return rows, lengths.cumsum(0).int()


def test_features_are_open_clips(pair: tuple[Any, Clip]) -> None:
    theirs, clip = pair
    count, side = 16, 16
    patches = torch.randint(0, 256, (3 * count, 3 * side * side), dtype=torch.uint8)
    columns = patches.view(3, count, side, side, 3).permute(0, 4, 2, 3, 1).flatten(1, 3)
    images = (fold(columns.double(), (64, 64), side, stride=side) / 255 - 0.5) / 0.5
    positions, offsets = packed(clip, [torch.arange(count)] * 3)
    tokens = torch.randint(1, 99, (4, 16))
    with torch.no_grad():
        ours = clip.encode_image(patches, positions, offsets)
        torch.testing.assert_close(ours, theirs.encode_image(images.float()), atol=2e-5, rtol=1e-4)
        text_offsets = torch.arange(0, 65, 16, dtype=torch.int32)
        ours = clip.encode_text(tokens.flatten().int(), text_offsets)
        torch.testing.assert_close(ours, theirs.encode_text(tokens), atol=2e-5, rtol=1e-4)
    assert clip.logit_bias is not None
    assert clip.logit_bias.item() == theirs.logit_bias.item()


def test_missing_patches_are_as_if_attention_never_saw_them(pair: tuple[Any, Clip]) -> None:
    """An image's feature does not hang on what else is packed with it."""
    _, clip = pair
    patches = torch.randn(24, 768)
    visible = [torch.tensor([0, 3, 5, 9]), torch.arange(16), torch.tensor([1, 2, 4, 15])]
    positions, offsets = packed(clip, visible)
    with torch.no_grad():
        together = clip.encode_image(patches, positions, offsets)
        alone = clip.encode_image(
            patches[20:], positions[20:], torch.tensor([0, 4], dtype=torch.int32)
        )
    torch.testing.assert_close(together[2:], alone, atol=1e-6, rtol=1e-5)


def test_weights_go_both_ways_bit_for_bit(pair: tuple[Any, Clip]) -> None:
    theirs, clip = pair
    state, dumped = theirs.state_dict(), open_clip_weights.dump(clip)
    assert dumped.keys() == state.keys()
    assert all(torch.equal(dumped[name], state[name]) for name in state)
    assert from_open_clip("small", open_clip_config(clip.config), PIXELS) == clip.config


@pytest.mark.parametrize("name", SIGLIP)
def test_names_and_shapes_of_published_siglips_are_open_clips(name: str) -> None:
    raw: Any = open_clip.get_model_config(name)
    raw.pop("custom_text")
    with torch.device("meta"):
        theirs = open_clip.CustomTextCLIP(**raw).state_dict()
        clip = build_clip(clip_config(name))
    dumped = open_clip_weights.dump(clip)
    assert {n: value.shape for n, value in dumped.items()} == {
        n: value.shape for n, value in theirs.items()
    }


def test_siglips_pixels_and_activation_are_read() -> None:
    config = clip_config("ViT-B-16-SigLIP")
    assert (config.vision.pixel_mean, config.vision.pixel_std) == PIXELS
    assert (config.vision.ln_eps, config.text.ln_eps) == (1e-6, 1e-6)
    assert config.init_logit_bias == -10


def test_pictures_that_are_no_whole_number_of_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="must divide image_size 384"):
        clip_config("ViT-SO400M-14-SigLIP-384")


def test_positions_without_a_class_token_are_resized_as_a_grid() -> None:
    table = torch.randn(1, 16, 8)
    resized = resize_image_positions(table, 36, class_token=False)
    with_class = torch.cat([torch.zeros(1, 8), table[0]])
    assert resized.shape == (1, 36, 8)
    assert torch.equal(resized[0], resize_image_positions(with_class, 36)[1:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timm_proj": "linear"}, "timm_proj"),
        ({"timm_pool": ""}, "timm_pool"),
        ({"timm_model_name": "vit_tiny_patch16_224"}, "a class token"),
        ({"timm_model_name": "convnext_tiny"}, "img_size|ConvNeXt"),
        ({"timm_model_name": "vitamin_small_224"}, "vitamin_small_224"),
        ({"timm_nonsense": 1}, "timm_nonsense"),
    ],
)
def test_other_towers_of_timm_are_refused(changes: dict[str, Any], words: str) -> None:
    raw = {**SMALL, "vision_cfg": {**SMALL["vision_cfg"], **changes}}
    with pytest.raises(ValueError, match=words):
        from_open_clip("small", raw)
