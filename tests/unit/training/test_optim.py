"""Parameter groups, optimisers and gradient lengths, against open_clip, NumPy and torch."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import open_clip
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tessera.model import build_clip, open_clip_weights
from tessera.model.config import clip_config
from tessera.training import checkpoint
from tessera.training.checkpoint import Checkpoint
from tessera.training.optim import build_optimizer, clip_gradients, decay_groups, set_learning_rate
from tessera.training.optim_config import OptimConfig, OptimizerName

OPTIMIZERS = get_args(OptimizerName)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        set_learning_rate(optimizer, 0.01 / (1 + step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["tessera-demo", "ViT-S-32-alt"])
def test_the_groups_are_those_of_open_clip(name: str) -> None:
    """The rule of open_clip_train.main, applied to open_clip's own model of the same config."""
    config = clip_config(name)
    theirs = open_clip.CLIP(**open_clip_weights.open_clip_config(config))
    spared = {
        n
        for n, p in theirs.named_parameters()
        if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n
    }
    ours = build_clip(config)
    _, plain = decay_groups(ours)
    values = {id(p) for p in plain}
    for number, parameter in enumerate(ours.parameters()):  # a mark that survives the renaming
        nn.init.constant_(parameter, number)
    marks = {int(p.flatten()[0]): id(p) in values for p in ours.parameters()}
    dumped = open_clip_weights.dump(ours)
    trained = {n for n, _ in theirs.named_parameters()}
    assert {n for n in trained if marks[int(dumped[n].flatten()[0])]} == spared


def test_no_decay_on_anything_called_a_bias_whatever_its_shape() -> None:
    model = nn.Linear(4, 4)
    model.register_parameter("position_bias", nn.Parameter(torch.ones(3, 3)))
    model.register_parameter("frozen", nn.Parameter(torch.ones(3, 3), requires_grad=False))
    decayed, plain = decay_groups(model)
    assert [p.shape for p in decayed] == [(4, 4)]
    assert [p.shape for p in plain] == [(4,), (3, 3)]
    groups = build_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_goes_on_from_a_checkpoint_bit_for_bit(
    name: OptimizerName, tmp_path: Path
) -> None:
    config = OptimConfig(optimizer=name, learning_rate=0.01)
    model = small_model()
    optimizer = build_optimizer(model, config)
    train(model, optimizer, range(3))
    parts = {
        checkpoint.WEIGHTS: model.state_dict(),
        checkpoint.OPTIMIZER: checkpoint.optimizer_tensors(model, optimizer),
    }
    path = checkpoint.save(
        tmp_path, Checkpoint(step=3, parts=parts, architecture={}, state={}), keep=1
    )
    train(model, optimizer, range(3, 7))

    found = checkpoint.load(path)
    resumed = small_model()
    resumed.load_state_dict(found.part(checkpoint.WEIGHTS))
    resumed_optimizer = build_optimizer(resumed, config)
    checkpoint.restore_optimizer(resumed, resumed_optimizer, found.part(checkpoint.OPTIMIZER))
    train(resumed, resumed_optimizer, range(3, 7))
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def one_by_hand(name: str, weights: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """The update rules of the papers, in float64, for a matrix that decays by 0.1 at rate 0.01."""
    rate, decay, eps = 0.01, 0.1, 1e-6
    (b1, b2), w = OptimConfig(optimizer=name).betas, weights.astype(np.float64)  # type: ignore[arg-type]
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate((g.astype(np.float64) for g in gradients), 1):
        match name:
            case "lion":  # Chen et al. 2023, algorithm 2
                w = w - rate * (np.sign(b1 * m + (1 - b1) * g) + decay * w)
                m = b2 * m + (1 - b2) * g
            case "sgd":  # momentum as torch has it, the look-ahead of Nesterov, decoupled decay
                m = g if t == 1 else b1 * m + g
                w = w * (1 - rate * decay) - rate * (g + b1 * m)
            case _:  # Loshchilov and Hutter 2019; You et al. 2020, algorithm 2
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                move = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
                move = move + decay * w
                if name == "lamb":
                    move = move * np.linalg.norm(w) / np.linalg.norm(move)
                w = w - rate * move
    return w


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_does_what_its_paper_says(name: OptimizerName) -> None:
    draw = np.random.default_rng(1)
    start = draw.standard_normal((5, 4)).astype(np.float32)
    gradients = [draw.standard_normal((5, 4)).astype(np.float32) * 3 for _ in range(6)]
    layer = nn.Linear(4, 5, bias=False)
    layer.weight.data = torch.from_numpy(start.copy())
    optimizer = build_optimizer(
        layer, OptimConfig(optimizer=name, learning_rate=0.01, weight_decay=0.1)
    )
    for gradient in gradients:
        layer.weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    expected = one_by_hand(name, start, gradients)
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=2e-5, atol=2e-6)


def test_gradients_are_shortened_together_and_their_length_told() -> None:
    model = small_model()
    model(torch.ones(2, 6)).square().sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    length = float(np.sqrt(sum(g.double().square().sum().item() for g in before)))
    assert clip_gradients(model, 0.0).item() == pytest.approx(length, rel=1e-6)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
    assert clip_gradients(model, 0.5).item() == pytest.approx(length, rel=1e-6)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * (0.5 / length), rtol=1e-5, atol=1e-8)
    assert clip_gradients(model, 10.0).item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"beta2": 1.0},
        {"warmup_samples": -1},
        {"schedule": "cooldown"},
        {"min_logit_scale": 200.0},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        OptimConfig(**wrong)


def test_layer_decay_slows_the_image_tower_from_its_end_to_its_start() -> None:
    clip = build_clip("tessera-demo")
    count = clip.config.vision.layers
    optimizer = build_optimizer(clip, OptimConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 1.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in clip.named_parameters()}
    assert by_name["image.patch_embed.weight"] == 0.5 ** (count + 1)
    assert by_name["image.positional_embedding"] == 0.5 ** (count + 1)
    for layer in range(count):
        own = {rate for n, rate in by_name.items() if n.startswith(f"image.blocks.{layer}.")}
        assert own == {0.5 ** (count - layer)}
    text = {rate for n, rate in by_name.items() if n.startswith("text.")}
    assert text == {1.0} == {by_name["logit_scale"], by_name["image.ln_post.weight"]}


def test_each_tower_has_a_rate_and_a_layer_decay_of_its_own() -> None:
    clip = build_clip("tessera-demo")
    assert clip.text is not None
    count = len(clip.text.blocks)
    config = OptimConfig(
        learning_rate=1e-3, image_learning_rate=1e-4, text_learning_rate=5e-4, text_layer_decay=0.5
    )
    optimizer = build_optimizer(clip, config)
    set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in clip.named_parameters()}
    image = [rate for name, rate in by_name.items() if name.startswith("image.")]
    assert image == pytest.approx([1e-4] * len(image))
    for layer in range(count):
        own = [rate for n, rate in by_name.items() if n.startswith(f"text.blocks.{layer}.")]
        assert own == pytest.approx([5e-4 * 0.5 ** (count - layer)] * len(own))
    lowest = pytest.approx(5e-4 * 0.5 ** (count + 1))
    assert by_name["text.token_embedding.weight"] == lowest
    assert by_name["text.positional_embedding"] == lowest
    assert by_name["text.ln_final.weight"] == by_name["text.proj"] == pytest.approx(5e-4)
    assert by_name["logit_scale"] == pytest.approx(1e-3)


def test_layer_rule_of_the_released_code_spares_what_its_code_spares() -> None:
    """EVA-CLIP's code finds parameters by names that the class embedding does not have."""
    clip = build_clip("tessera-demo")
    config = OptimConfig(layer_decay=0.5, layer_rule="eva_clip", weight_decay=0.3)
    optimizer = build_optimizer(clip, config)
    set_learning_rate(optimizer, 1.0)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups
             for p in g["params"]}  # fmt: skip
    by_name = {name: found[id(p)] for name, p in clip.named_parameters()}
    lowest = 0.5 ** (clip.config.vision.layers + 1)
    assert by_name["image.class_embedding"] == (1.0, 0.0)
    assert by_name["image.ln_pre.weight"] == (1.0, 0.0)
    assert by_name["image.positional_embedding"] == (lowest, 0.0)
    assert by_name["image.patch_embed.weight"] == (lowest, 0.3)
    assert by_name["text.positional_embedding"] == (1.0, 0.3)
    assert by_name["image.blocks.0.attn.qkv.weight"] == (2 * lowest, 0.3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimiser_waits_for_a_gpu(name: OptimizerName) -> None:
    """On an imagined CUDA device, where asking for a value raises."""
    with FakeTensorMode(), torch.device("cuda"):
        model = build_clip("tessera-demo")
        optimizer = build_optimizer(model, OptimConfig(optimizer=name, learning_rate=1e-3))
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            assert clip_gradients(model, 1.0).device.type == "cuda"
            optimizer.step()
