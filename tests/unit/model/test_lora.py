"""Low-rank updates of the image tower."""

from typing import Any

import torch

from tessera.model import Clip, open_clip_weights
from tessera.model.config import clip_config
from tessera.model.execution import configure
from tessera.model.lora import LowRankUpdate, add_lora, lora_state, merged_state

DEMO = clip_config("tessera-demo")


def images(clip: Clip) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    n, columns = clip.config.vision.num_patches, clip.config.vision.patch_dim
    patches = torch.randint(0, 256, (n, columns), generator=draw, dtype=torch.uint8)
    offsets = torch.tensor([0, n], dtype=torch.int32)
    return clip.encode_image(patches, torch.arange(n, dtype=torch.int32), offsets)


def test_updates_start_at_nothing_train_alone_and_merge_without_loss() -> None:
    torch.manual_seed(0)
    clip = Clip(DEMO)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    plain = images(clip)
    add_lora(clip.image, rank=3, alpha=6.0)
    assert torch.equal(images(clip), plain)
    trained = {name: p for name, p in clip.image.named_parameters() if p.requires_grad}
    assert trained
    assert all(".parametrizations.weight.0." in name for name in trained)
    # qkv, out, up and down of each block, each with two factors.
    assert len(trained) == 2 * 4 * DEMO.vision.layers
    images(clip).square().sum().backward()
    for parameter in trained.values():
        assert parameter.grad is not None
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.05)
    changed = images(clip)
    assert not torch.allclose(changed, plain, atol=1e-3)
    merged = Clip(DEMO)
    open_clip_weights.load(merged, open_clip_weights.dump(clip))
    assert torch.equal(images(merged), changed)
    name = "image.blocks.0.mlp.up"
    module = clip.get_submodule(name)
    update: Any = module.parametrizations.weight[0]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    expected = before[f"{name}.weight"].double() + 2 * update.up.double() @ update.down.double()
    torch.testing.assert_close(
        merged_state(clip)[f"{name}.weight"].double(), expected, atol=1e-6, rtol=1e-5
    )


def test_a_checkpoint_gives_updates_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    clip = Clip(DEMO)
    add_lora(clip.image, rank=2, alpha=2.0)
    for parameter in clip.image.parameters():
        parameter.data.add_(0.01)
    again = Clip(DEMO)
    open_clip_weights.load(again, open_clip_weights.dump(clip))
    add_lora(again.image, rank=2, alpha=2.0)
    again.image.load_state_dict(lora_state(clip.image), strict=False)
    theirs = again.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in clip.state_dict().items())


def test_bfloat16_does_not_round_the_sum_of_weight_and_update() -> None:
    """A weight in bfloat16 would swallow updates below its 256th part."""
    torch.manual_seed(0)
    clip = Clip(DEMO)
    configure(clip, compute_dtype=torch.bfloat16, residual_dtype=torch.float32)
    add_lora(clip.image, rank=4, alpha=8.0)
    updates = [m for m in clip.image.modules() if isinstance(m, LowRankUpdate)]
    sums = []
    for update in updates:
        torch.nn.init.normal_(update.up, std=1e-4)
        update.register_forward_hook(lambda _module, _inputs, out: sums.append(out.dtype))
    images(clip)
    assert set(sums) == {torch.float32}
