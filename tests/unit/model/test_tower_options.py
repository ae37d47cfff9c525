"""Every option of a tower against open_clip's model with that option, values and gradients."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.model import Clip, build_clip, open_clip_weights
from tessera.model.execution import configure
from tessera.model.open_clip_config import from_open_clip

SIDE, GRID, CONTEXT, VOCAB, EOS = 6, 4, 12, 60, 2

SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": SIDE * GRID,
        "patch_size": SIDE,
        "width": 32,
        "layers": 3,
        "head_width": 16,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": VOCAB,
        "width": 24,
        "heads": 2,
        "layers": 2,
    },
}

OPTIONS = {
    "layer scale": ({"ls_init_value": 0.1}, {"ls_init_value": 0.1}, {}),
    "mean of normed patches": ({"pool_type": "avg"}, {}, {}),
    "normed mean of patches": ({"pool_type": "avg", "final_ln_after_pool": True}, {}, {}),
    "class token, norm last": ({"final_ln_after_pool": True}, {}, {}),
    "fixed positions": ({"pos_embed_type": "sin_cos_2d"}, {}, {}),
    "tanh GELU": (
        {"act_kwargs": {"approximate": "tanh"}},
        {"act_kwargs": {"approximate": "tanh"}},
        {},
    ),
    "epsilon": ({"norm_kwargs": {"eps": 0.1}}, {"norm_kwargs": {"eps": 0.1}}, {}),
    "quick GELU": ({"no_ln_pre": True}, {}, {"quick_gelu": True}),
    "end token by id": ({}, {"pool_type": "eos", "eos_id": EOS}, {}),
    "causal last": ({}, {"pool_type": "last"}, {}),
    "bidirectional argmax": ({}, {"no_causal_mask": True}, {}),
    "bidirectional end token": (
        {},
        {"no_causal_mask": True, "pool_type": "eos", "eos_id": EOS},
        {},
    ),
    "bidirectional first": ({}, {"no_causal_mask": True, "pool_type": "first"}, {}),
    "projection bias": ({}, {"proj_bias": True}, {}),
    "no projection": ({}, {"proj_type": "none"}, {}),
    "own text class": ({}, {"proj_bias": True}, {"custom_text": True}),
    "bias on logits": ({}, {}, {"init_logit_bias": -10.0}),
    "CLIPA": (
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"pool_type": "last", "no_causal_mask": True},
        {},
    ),
}


def config_with(name: str) -> dict[str, Any]:
    """open_clip's JSON of the small model with an option."""
    vision, text, top = OPTIONS[name]
    raw = copy.deepcopy(SMALL)
    raw["vision_cfg"] |= vision
    raw["text_cfg"] |= text
    return raw | top


def matching_models(raw: dict[str, Any]) -> tuple[Any, Clip]:
    """open_clip's model with no parameter left at zero or one, and ours with its weights."""
    torch.manual_seed(0)
    arguments = copy.deepcopy(raw)
    kind = open_clip.CustomTextCLIP if arguments.pop("custom_text", False) else open_clip.CLIP
    theirs = kind(**arguments)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    ours = build_clip(from_open_clip("small", raw))
    open_clip_weights.load(ours, theirs.state_dict())
    return theirs, ours


def pairs() -> tuple[Tensor, Tensor]:
    """[4, 3, S, S] and padded ids [4, C]: one short, two middling, one full caption."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, SIDE * GRID, SIDE * GRID, generator=generator)
    texts = torch.randint(EOS + 1, VOCAB - 1, (4, CONTEXT), generator=generator)
    for row, length in zip(texts, LENGTHS, strict=True):
        row[length - 1] = VOCAB - 1
        row[length:] = 0
    return images, texts


LENGTHS = [2, 5, 9, CONTEXT]


def patches_of(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All patches of all images, packed."""
    rows = images.unflatten(3, (GRID, SIDE)).unflatten(2, (GRID, SIDE))
    patches = rows.permute(0, 2, 4, 3, 5, 1).reshape(-1, 3 * SIDE**2)
    positions = torch.arange(GRID**2, dtype=torch.int32).repeat(len(images))
    return patches, positions, torch.arange(len(images) + 1, dtype=torch.int32) * GRID**2


def tokens_of(texts: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Captions packed; with their padding where open_clip's tower sees it."""
    whole = not config.causal or config.pool == "last"
    lengths = [CONTEXT] * len(texts) if whole else LENGTHS
    tokens = torch.cat([row[:n] for row, n in zip(texts, lengths, strict=True)])
    return tokens.int(), torch.tensor([0, *lengths]).cumsum(0).int()


def objective(image: Tensor, text: Tensor) -> Tensor:
    """A scalar in which every value of both features counts."""
    weights = torch.linspace(-1, 1, image.numel()).view_as(image)
    return (image * weights).sum() + (text * weights.flip(0)).sum() + (image * text).sum()


@pytest.mark.parametrize("name", OPTIONS)
def test_option_equals_open_clip_with_gradients(name: str) -> None:
    raw = config_with(name)
    theirs, ours = matching_models(raw)
    images, texts = pairs()
    if "eos_id" in raw["text_cfg"]:
        texts[texts == VOCAB - 1] = EOS
    wanted = theirs.encode_image(images, True), theirs.encode_text(texts, True)
    image = F.normalize(ours.encode_image(*patches_of(images)), dim=-1)
    text = F.normalize(ours.encode_text(*tokens_of(texts, ours.config.text)), dim=-1)
    torch.testing.assert_close(image, wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(text, wanted[1], atol=1e-5, rtol=0)
    assert (text[1] - text[2]).abs().max() > 1e-3
    assert (image[1] - image[2]).abs().max() > 1e-3

    objective(*wanted).backward()
    objective(image, text).backward()
    gradients = gradients_by_open_clips_name(ours)
    for key, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            error = (gradients[key] - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-6)
            assert error < 1e-4, f"{key}: {error:.2e}"


def gradients_by_open_clips_name(clip: Clip) -> dict[str, Tensor]:
    """By way of a model that has the gradients for weights."""
    holder = copy.deepcopy(clip)
    for target, source in zip(holder.parameters(), clip.parameters(), strict=True):
        target.data = torch.zeros_like(source) if source.grad is None else source.grad.clone()
    return open_clip_weights.dump(holder)


@pytest.mark.parametrize("name", ["CLIPA", "fixed positions", "mean of normed patches"])
def test_visible_patches_equal_open_clip_with_the_others_cut_out(name: str) -> None:
    raw = config_with(name)
    theirs, ours = matching_models(raw)
    images, _ = pairs()
    patches, positions, _ = patches_of(images)
    visible = [[3], [0, 5, 15], list(range(GRID**2)), [9, 2]]
    rows = [i * GRID**2 + patch for i, kept in enumerate(visible) for patch in kept]
    offsets = torch.tensor([0, *map(len, visible)]).cumsum(0).int()
    with torch.no_grad():
        packed = ours.encode_image(patches[rows], positions[rows], offsets)
        for i, kept in enumerate(visible):
            alone = with_patches_cut_out(theirs, images[i : i + 1], kept)
            torch.testing.assert_close(packed[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def with_patches_cut_out(theirs: Any, image: Tensor, kept: list[int]) -> Tensor:
    """open_clip's image tower, whose patch dropout keeps these patches."""
    tower = copy.deepcopy(theirs.visual)
    rows = torch.tensor([0, *(patch + 1 for patch in kept)])
    tower.patch_dropout = Keep(rows)
    return tower(image)


class Keep(torch.nn.Module):
    """Keeps given rows of the token stream."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.rows]


@pytest.mark.parametrize("name", ["CLIPA", "mean of normed patches", "bidirectional argmax"])
def test_others_of_the_batch_do_not_reach_a_feature(name: str) -> None:
    _, ours = matching_models(config_with(name))
    images, texts = pairs()
    with torch.no_grad():
        before = (
            ours.encode_image(*patches_of(images)),
            ours.encode_text(*tokens_of(texts, ours.config.text)),
        )
        images[1:] += 1
        texts[1:, 1] = 7
        after = (
            ours.encode_image(*patches_of(images)),
            ours.encode_text(*tokens_of(texts, ours.config.text)),
        )
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[0], new[0])
        assert not torch.allclose(old[1:], new[1:])


def test_bidirectional_packed_captions_equal_each_alone() -> None:
    _, ours = matching_models(config_with("bidirectional argmax"))
    _, texts = pairs()
    captions = [row[:n].int() for row, n in zip(texts, LENGTHS, strict=True)]
    captions.append(captions[0][-1:])
    offsets = torch.tensor([0, *map(len, captions)]).cumsum(0).int()
    with torch.no_grad():
        together = ours.encode_text(torch.cat(captions), offsets)
        for row, caption in zip(together, captions, strict=True):
            alone = ours.encode_text(caption, torch.tensor([0, len(caption)], dtype=torch.int32))
            torch.testing.assert_close(row, alone[0], atol=1e-6, rtol=1e-5)


def test_mean_pooling_trains_in_bfloat16() -> None:
    _, ours = matching_models(config_with("CLIPA"))
    images, texts = pairs()
    exact = ours.encode_image(*patches_of(images))
    configure(ours, compute_dtype=torch.bfloat16, residual_dtype=torch.float32)
    image = ours.encode_image(*patches_of(images))
    text = ours.encode_text(*tokens_of(texts, ours.config.text))
    assert F.cosine_similarity(image.float(), exact).min() > 0.999
    (image.float().sum() + text.float().sum()).backward()
    trained = [p for name, p in ours.named_parameters() if not name.startswith("logit")]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_fixed_positions_are_not_trained_and_start_as_open_clips() -> None:
    raw = config_with("fixed positions")
    table = build_clip(from_open_clip("small", raw)).image.positional_embedding
    assert not table.requires_grad
    theirs = open_clip.CLIP(**copy.deepcopy(raw)).visual.positional_embedding
    torch.testing.assert_close(table, theirs, atol=1e-6, rtol=0)


def test_bias_on_logits_is_there_where_asked_for() -> None:
    with_bias = build_clip(from_open_clip("small", config_with("bias on logits")))
    assert with_bias.logit_bias is not None
    assert with_bias.logit_bias.item() == -10.0
    assert build_clip(from_open_clip("small", SMALL)).logit_bias is None
