"""Low-rank updates of the towers."""

from typing import Any

import pytest
import torch

from tessera.model import Clip, open_clip_weights
from tessera.model.config import clip_config
from tessera.model.execution import configure
from tessera.model.lora import LowRankUpdate, add_lora, load_lora_state, lora_state, merged_state

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
    add_lora(clip.image, clip.image.blocks, rank=3, alpha=6.0)
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


@pytest.mark.parametrize("first_edition", [False, True])
def test_a_checkpoint_gives_updates_of_both_towers_back_bit_for_bit(first_edition: bool) -> None:
    torch.manual_seed(0)
    clips = Clip(DEMO), Clip(DEMO)
    sides = ["image"] if first_edition else ["image", "text"]
    for clip in clips:
        for side in sides:
            tower = clip.get_submodule(side)
            add_lora(tower, tower.get_submodule("blocks"), rank=2, alpha=2.0)
    clip, again = clips
    for parameter in clip.parameters():
        parameter.data.add_(0.01)
    plain = Clip(DEMO)
    open_clip_weights.load(plain, open_clip_weights.dump(clip))
    again.load_state_dict(plain.state_dict(), strict=False)
    stored = lora_state(clip)
    if first_edition:  # whose names began inside the image tower
        stored = {name.removeprefix("image."): value for name, value in stored.items()}
    load_lora_state(again, stored)
    theirs = again.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in clip.state_dict().items())


def test_updates_of_other_layers_are_refused() -> None:
    clip, other = Clip(DEMO), Clip(DEMO)
    add_lora(clip.image, clip.image.blocks, rank=2, alpha=2.0)
    assert other.text is not None
    add_lora(other.text, other.text.blocks, rank=2, alpha=2.0)
    with pytest.raises(ValueError, match="do not fit this model"):
        load_lora_state(other, lora_state(clip))


def test_bfloat16_does_not_round_the_sum_of_weight_and_update() -> None:
    """A weight in bfloat16 would swallow updates below its 256th part."""
    torch.manual_seed(0)
    clip = Clip(DEMO)
    configure(clip, compute_dtype=torch.bfloat16, residual_dtype=torch.float32)
    add_lora(clip.image, clip.image.blocks, rank=4, alpha=8.0)
    updates = [m for m in clip.image.modules() if isinstance(m, LowRankUpdate)]
    sums = []
    for update in updates:
        torch.nn.init.normal_(update.up, std=1e-4)
        update.register_forward_hook(lambda _module, _inputs, out: sums.append(out.dtype))
    images(clip)
    assert set(sums) == {torch.float32}
