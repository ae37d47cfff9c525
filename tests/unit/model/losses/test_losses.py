"""Values and gradients against NumPy in float64; tiles against the whole."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch import Tensor

from tessera.model import LossConfig, build_loss
from tessera.model.losses.config import METHODS, MultiText
from tests.unit.model.losses import reference

TILES = [0, 1, 3, 7]
FAMILY = sorted(METHODS)


def features(count: int, seed: int = 0, dim: int = 16) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, dim, generator=draw)
    texts = images + torch.randn(count, dim, generator=draw)
    return tuple(F.normalize(each, dim=1).requires_grad_() for each in (images, texts))  # pyright: ignore[reportReturnType]


def several_texts(count: int, num_texts: int) -> tuple[Tensor, Tensor]:
    """Features of images, and of so many texts of each."""
    draw = torch.Generator().manual_seed(num_texts)
    images = torch.randn(count, 16, generator=draw)
    texts = images.repeat_interleave(num_texts, 0)
    texts = texts + torch.randn(texts.shape, generator=draw)
    return tuple(F.normalize(each, dim=1).requires_grad_() for each in (images, texts))  # pyright: ignore[reportReturnType]


def as_arrays(tensors: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    return tensors[0].detach().double().numpy(), tensors[1].detach().double().numpy()


def run(config: LossConfig, pairs: tuple[Tensor, Tensor], scale: Tensor, **inputs: object):
    """The loss's value and its derivatives by features, scale and, where there is one, bias."""
    loss = build_loss(config, num_samples=50, steps_per_pass=2)
    value = loss(*pairs, scale, **inputs)
    wanted = [*pairs, scale] + ([inputs["logit_bias"]] if "logit_bias" in inputs else [])
    return value, torch.autograd.grad(value, wanted)  # pyright: ignore[reportCallIssue, reportArgumentType]


def assert_equal(found, wanted: reference.Result, tolerance: float = 3e-6) -> None:
    value, (by_images, by_texts, by_scale, *by_bias) = found
    assert value.item() == pytest.approx(wanted.value, rel=3e-6)
    for gradient, reference_gradient in (
        (by_images, wanted.by_images),
        (by_texts, wanted.by_texts),
    ):
        error = np.abs(gradient.numpy() - reference_gradient).max()
        assert error < tolerance * np.abs(reference_gradient).max()
    assert float(by_scale) == pytest.approx(wanted.by_scale, rel=2e-5, abs=1e-7)
    if by_bias:
        assert float(by_bias[0]) == pytest.approx(wanted.by_bias, rel=2e-5)


@pytest.mark.parametrize("tile_size", TILES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
def test_clip(tile_size: int, smoothing: float, scale: float) -> None:
    pairs = features(22)
    config = LossConfig(tile_size=tile_size, label_smoothing=smoothing)
    found = run(config, pairs, torch.tensor(scale, requires_grad=True))
    assert_equal(found, reference.clip(*as_arrays(pairs), scale, smoothing))


@pytest.mark.parametrize("tile_size", TILES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scale", [20.0, 100.0])
@pytest.mark.parametrize("multi_text", ["per_version", "all_texts"])
def test_clip_of_several_texts(
    multi_text: MultiText, tile_size: int, smoothing: float, scale: float
) -> None:
    pairs = several_texts(11, num_texts=3)
    config = LossConfig(tile_size=tile_size, label_smoothing=smoothing, multi_text=multi_text)
    found = run(config, pairs, torch.tensor(scale, requires_grad=True))
    wanted = {"per_version": reference.clip_per_version, "all_texts": reference.clip_all_texts}
    # Logits of 100 are rounded to 4e-6.
    assert_equal(found, wanted[multi_text](*as_arrays(pairs), scale, smoothing), tolerance=1e-5)


@pytest.mark.parametrize("tile_size", [0, 5])
def test_both_definitions_of_several_texts_are_clip_for_one(tile_size: int) -> None:
    pairs, scale = features(12), torch.tensor(40.0, requires_grad=True)
    one, other = (
        run(LossConfig(tile_size=tile_size, multi_text=each), pairs, scale)
        for each in get_args(MultiText)
    )
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[1], other[1])


def test_gradients_of_pairs_that_are_learned_do_not_cancel() -> None:
    """At a margin of 20 a probability differs from 1 by less than float32 can say."""
    draw = torch.Generator().manual_seed(0)
    images = F.normalize(torch.eye(6, 16) + 0.05 * torch.randn(6, 16, generator=draw), dim=1)
    texts = images.repeat_interleave(2, 0).requires_grad_()
    images.requires_grad_()
    found = run(LossConfig(tile_size=2), (images, texts), torch.tensor(20.0, requires_grad=True))
    wanted = reference.clip_per_version(*as_arrays((images, texts)), 20.0, 0.0)
    error = np.abs(found[1][1].numpy() - wanted.by_texts).max()
    assert error < 1e-3 * np.abs(wanted.by_texts).max()


@pytest.mark.parametrize("tile_size", TILES)
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (80.0, -30.0)])
def test_siglip(tile_size: int, scale: float, bias: float) -> None:
    pairs = features(22)
    inputs = torch.tensor(scale, requires_grad=True), torch.tensor(bias, requires_grad=True)
    config = LossConfig(kind="siglip", tile_size=tile_size)
    found = run(config, pairs, inputs[0], logit_bias=inputs[1])
    assert_equal(found, reference.siglip(*as_arrays(pairs), scale, bias))
    torch.testing.assert_close(found[0], SigLipLoss()(*pairs, *inputs))


@pytest.mark.parametrize("tile_size", [0, 7])
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("kind", FAMILY)
def test_fastclip_over_steps(kind: str, doubled: bool, tile_size: int) -> None:
    """The same samples again and again, and new ones among them, through the schedule."""
    config = LossConfig(
        kind=kind,  # pyright: ignore[reportArgumentType]
        tile_size=tile_size,
        gamma_decay_passes=3,
        temperature_learning_rate=0.02,
        doubled_temperature_gradient=doubled,
    )
    loss = build_loss(config, num_samples=50, steps_per_pass=2)
    wanted = reference.FastClip(config, num_samples=50, steps_per_pass=2)
    for step in range(8):
        ids = (torch.arange(22) * 7 + step * 5) % 50
        pairs, scale = features(22, seed=step), torch.tensor(20.0, requires_grad=True)
        value = loss(*pairs, scale, sample_ids=ids, step=step)
        found = value, torch.autograd.grad(value, [*pairs, scale])
        # The moments divide small numbers by each other: temperatures agree to 1e-5.
        assert_close_over_steps(found, wanted.step(*as_arrays(pairs), 20.0, ids.numpy(), step))
        if config.method().rule == "global":
            assert float(loss.temperature()) == pytest.approx(wanted.global_tau, rel=1e-5)  # pyright: ignore[reportArgumentType]
    state = loss.state_tensors()
    np.testing.assert_array_equal(state["seen"].numpy(), ~np.isnan(wanted.u[:, 0]))
    for side, name in enumerate(("image", "text")):
        seen = state["seen"].numpy()
        log_u = state[f"log_u_{name}"].numpy()[seen]
        np.testing.assert_allclose(log_u, np.log(wanted.u[seen, side]), rtol=1e-4, atol=1e-4)
        if "temperature_image" in state:
            found_tau = state[f"temperature_{name}"].numpy()
            np.testing.assert_allclose(found_tau, wanted.tau[:, side], rtol=1e-4)


def assert_close_over_steps(found, wanted: reference.Result) -> None:
    value, gradients = found
    assert value.item() == pytest.approx(wanted.value, rel=5e-5, abs=1e-5)
    for gradient, reference_gradient in zip(
        gradients[:2], (wanted.by_images, wanted.by_texts), strict=True
    ):
        error = np.abs(gradient.numpy() - reference_gradient).max()
        assert error < 2e-4 * np.abs(reference_gradient).max()
    assert float(gradients[2]) == pytest.approx(wanted.by_scale, rel=1e-4, abs=1e-7)


def test_first_pass_of_v0_with_large_eps_is_clip() -> None:
    """At gamma 1 and eps 1/(B-1), log(eps + g) is InfoNCE but for a constant."""
    pairs, scale = features(12), torch.tensor(15.0, requires_grad=True)
    clip = run(LossConfig(), pairs, scale)[1]
    config = LossConfig(kind="fastclip_v0", eps=1 / 11)
    found = run(config, pairs, scale, sample_ids=torch.arange(12))[1]
    torch.testing.assert_close(found, clip, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["fastclip_v1", "fastclip_v3"])
def test_nothing_overflows_at_the_coldest_temperature(kind: str) -> None:
    """exp((c_ij - c_ii) / 0.01) reaches e^200, beyond float32."""
    config = LossConfig(kind=kind, temperature=0.01)  # pyright: ignore[reportArgumentType]
    images, _ = features(12)
    pairs = images, (-images.detach()).requires_grad_()
    loss = build_loss(config, num_samples=12, steps_per_pass=1)
    for step in range(3):
        value = loss(*pairs, torch.tensor(1.0), sample_ids=torch.arange(12), step=step)
        gradients = torch.autograd.grad(value, pairs)
        assert all(each.isfinite().all() for each in (value, *gradients))
        assert value > 1, "tau * log u is then the largest gap"


def test_evaluation_leaves_the_state() -> None:
    loss = build_loss(LossConfig(kind="fastclip_v3"), num_samples=12, steps_per_pass=1).eval()
    before = {name: value.clone() for name, value in loss.state_tensors().items()}
    loss(*features(12), torch.tensor(1.0), sample_ids=torch.arange(12))
    after = loss.state_tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_sample_twice_in_a_batch_keeps_its_last_estimate() -> None:
    loss = build_loss(LossConfig(kind="fastclip_v1"), num_samples=9, steps_per_pass=1)
    pairs = features(3)
    loss(*pairs, torch.tensor(1.0), sample_ids=torch.tensor([4, 8, 4]))
    twice = loss.state_tensors()
    loss(*pairs, torch.tensor(1.0), sample_ids=torch.tensor([0, 8, 4]))
    assert torch.equal(twice["log_u_image"][[4, 8]], loss.state_tensors()["log_u_image"][[4, 8]])
    assert twice["seen"].nonzero().flatten().tolist() == [4, 8]


@pytest.mark.parametrize("kind", ["clip", "siglip", "fastclip_v2"])
def test_autocast_and_half_precision_features(kind: str) -> None:
    config = LossConfig(kind=kind, tile_size=4)  # pyright: ignore[reportArgumentType]
    loss = build_loss(config, num_samples=12, steps_per_pass=1).eval()
    inputs = {"logit_bias": torch.tensor(-3.0), "sample_ids": torch.arange(12)}
    half = [each.detach().bfloat16().requires_grad_() for each in features(12)]
    exact = loss(*(each.float() for each in half), torch.tensor(20.0), **inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(*half, torch.tensor(20.0), **inputs)
        assert torch.equal(found, exact)
    found.backward()
    assert all(each.grad is not None and each.grad.dtype == torch.bfloat16 for each in half)


def test_what_a_loss_cannot_do_without_is_refused() -> None:
    pairs, scale = features(4), torch.tensor(1.0)
    built = {
        kind: build_loss(LossConfig(kind=kind), num_samples=4, steps_per_pass=1)  # pyright: ignore[reportArgumentType]
        for kind in ("siglip", "fastclip_v3")
    }
    with pytest.raises(ValueError, match="logit bias"):
        built["siglip"](*pairs, scale)
    with pytest.raises(ValueError, match="sample_ids"):
        built["fastclip_v3"](*pairs, scale)
    with pytest.raises(ValueError, match=r"0 \.\. 3"):
        built["fastclip_v3"](*pairs, scale, sample_ids=torch.arange(1, 5))
    with pytest.raises(ValueError, match="2 pairs"):
        built["fastclip_v3"](*features(1), scale, sample_ids=torch.arange(1))
    with pytest.raises(ValueError, match="0 steps per pass"):
        build_loss(LossConfig(), num_samples=4, steps_per_pass=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": 0.1, "kind": "siglip"}, "option of clip"),
        ({"tile_size": -1}, "tile_size"),
        ({"gamma": 0.0}, "gamma"),
        ({"gamma_decay_passes": 0}, "gamma_decay_passes"),
        ({"temperature": 2.0}, "temperature"),
        ({"temperature_min": 0.0}, "temperature_min"),
        ({"eps": 0.0}, "eps"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**options)


def test_the_schedule_of_the_fact_sheet() -> None:
    from tessera.model.losses.fastclip import inner_rate

    rates = [inner_rate("cosine", 0.2, number, 4) for number in range(6)]
    halves = [math.cos(math.pi * number / 4) for number in range(4)]
    assert rates == pytest.approx([0.5 * (1 + c) * 0.8 + 0.2 for c in halves] + [0.2, 0.2])
    assert [inner_rate("constant", 0.8, number, 4) for number in (0, 1, 9)] == [1.0, 0.8, 0.8]


@pytest.mark.parametrize(("kind", "tile_size"), [("clip", 5), ("siglip", 0), ("siglip", 5)])
def test_small_gradients_of_a_late_run_are_right(kind: str, tile_size: int) -> None:
    """Every pair is recognised: what is left is a small difference of numbers near 1."""
    draw = torch.Generator().manual_seed(3)
    images = F.normalize(torch.randn(22, 64, generator=draw), dim=1)
    texts = F.normalize(images + 0.08 * torch.randn(22, 64, generator=draw), dim=1)
    pairs = images.requires_grad_(), texts.requires_grad_()
    config = LossConfig(kind=kind, tile_size=tile_size)  # pyright: ignore[reportArgumentType]
    scale, bias = torch.tensor(30.0, requires_grad=True), torch.tensor(-15.0, requires_grad=True)
    inputs = {"logit_bias": bias} if kind == "siglip" else {}
    value, gradients = run(config, pairs, scale, **inputs)
    arrays = as_arrays(pairs)
    clip = kind == "clip"
    wanted = reference.clip(*arrays, 30.0) if clip else reference.siglip(*arrays, 30.0, -15.0)
    assert wanted.value < 3e-3
    assert value.item() == pytest.approx(wanted.value, rel=1e-4)
    error = np.abs(gradients[0].numpy() - wanted.by_images).max()
    assert error < 2e-5 * np.abs(wanted.by_images).max()
