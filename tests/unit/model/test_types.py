"""One rule for types: products in one, the residual stream in another, autocast in none."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tessera.model import Clip, build_clip
from tessera.model.execution import configure

BF16, F32 = torch.bfloat16, torch.float32
LENGTHS, CAPTIONS = [20, 64, 33], [5, 9, 20]


@pytest.fixture
def clip() -> Clip:
    torch.manual_seed(1)
    return build_clip("tessera-demo")


def batch(lengths: list[int] = LENGTHS) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(2)
    captions = CAPTIONS[: len(lengths)]
    return (
        torch.randint(0, 256, (sum(lengths), 192), generator=draw).to(torch.uint8),
        torch.cat([torch.randperm(64, generator=draw)[:n] for n in lengths]).int(),
        torch.tensor([0, *lengths]).cumsum(0).int(),
        torch.randint(1, 1000, (sum(captions),), generator=draw).int(),
        torch.tensor([0, *captions]).cumsum(0).int(),
    )


@pytest.mark.parametrize("residual", [F32, BF16])
def test_both_towers_keep_one_rule(clip: Clip, residual: torch.dtype) -> None:
    configure(clip, compute_dtype=BF16, residual_dtype=residual)
    streams, products = set(), set()
    for tower in clip.towers:
        for block in tower.blocks:
            block.register_forward_hook(
                lambda _b, ins, out: streams.update((ins[0].dtype, out.dtype))
            )
        for module in tower.blocks.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
                module.register_forward_hook(
                    lambda _m, ins, out: products.update((ins[0].dtype, out.dtype))
                )
    features = clip(*batch())
    (features[0] * features[1]).sum().backward()
    assert streams == {residual}
    assert products == {BF16}
    assert all(p.grad is None or p.grad.dtype == F32 for p in clip.parameters())


def test_a_callers_autocast_has_no_effect_and_is_told(clip: Clip) -> None:
    wanted = clip(*batch())
    with (
        torch.autocast("cpu", dtype=BF16),
        pytest.warns(UserWarning, match="no effect on Tessera's towers"),
    ):
        found = clip(*batch())
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_normalising_in_the_projection_is_no_less_exact_than_before_it(clip: Clip) -> None:
    """Against float64: in float32 as exact as float pixels are, in bfloat16 more so."""
    patches, *rest = batch()
    tower = clip.image
    vision = clip.config.vision
    mean, std = (
        torch.tensor(values, dtype=torch.float64).repeat(vision.patch_size**2)
        for values in (vision.pixel_mean, vision.pixel_std)
    )
    normalised = (patches.double() / 255 - mean) / std
    exact = F.linear(normalised, tower.patch_embed.weight.detach().double())

    def error(pixels: Tensor) -> float:
        seen: list[Tensor] = []
        hook = tower.ln_pre.register_forward_hook(lambda _m, ins, _o: seen.append(ins[0]))
        with torch.no_grad():
            clip.encode_image(pixels, *rest[:2])
        hook.remove()
        # The stream's rows of patches, without their positions.
        offsets = rest[1] + torch.arange(len(rest[1]))
        rows = [r for a, b in pairwise(offsets.tolist()) for r in range(a + 1, b)]
        found = seen[0][rows].detach().double() - F.embedding(
            rest[0] + 1, tower.positional_embedding.detach()
        )
        return float((found - exact).norm() / exact.norm())

    assert error(patches) < 1.5 * error(normalised.float()) < 1e-6
    configure(clip, compute_dtype=BF16, residual_dtype=F32)
    assert error(patches) < 0.9 * error(normalised.float())


class _Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.addmm.default, torch.ops.aten.linear.default):
            self.shapes.append(tuple(args[2 if func is torch.ops.aten.addmm.default else 1].shape))
        return func(*args, **(kwargs or {}))


def test_queries_keys_and_values_are_one_product(clip: Clip) -> None:
    width, layers = clip.config.vision.width, clip.config.vision.layers
    with _Products() as seen, torch.no_grad():
        clip.encode_image(*batch()[:3])
    widths = [max(shape) for shape in seen.shapes if set(shape) == {width, 3 * width}]
    assert widths == [3 * width] * (layers - 1), "the last block asks for pooled rows alone"


def test_a_bound_on_patches_bounds_attention_and_changes_nothing(clip: Clip) -> None:
    wanted = clip(*batch())
    configure(clip, max_patches=64)
    for ours, theirs in zip(clip(*batch()), wanted, strict=True):
        assert torch.equal(ours, theirs)
    configure(clip, max_patches=40)
    with pytest.raises(ValueError, match="1 to 41 tokens, got 21 to 65"):
        clip(*batch())
