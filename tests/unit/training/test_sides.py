"""What of the two towers is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tessera.model import build_clip
from tessera.recipes import find_recipe
from tessera.training.sides import set_trained
from tessera.training.tower_config import ImageSideConfig, TextSideConfig


def trained(image: ImageSideConfig, text: TextSideConfig) -> set[str]:
    clip = build_clip("tessera-demo")
    set_trained(clip, replace(find_recipe("demo").build(), image_side=image, text_side=text))
    return {name for name, parameter in clip.named_parameters() if parameter.requires_grad}


def test_a_frozen_tower_leaves_the_other_and_the_temperature() -> None:
    names = trained(ImageSideConfig(), TextSideConfig(tune="frozen"))
    assert not any(name.startswith("text.") for name in names)
    assert {"image.proj", "image.blocks.0.mlp.up.weight", "logit_scale"} <= names


def test_a_probe_trains_the_projections_alone() -> None:
    names = trained(ImageSideConfig(tune="projection"), TextSideConfig(tune="projection"))
    assert names == {"image.proj", "text.proj", "logit_scale"}


def test_the_last_blocks_are_trained_with_all_that_follows() -> None:
    names = trained(
        ImageSideConfig(tune="last", last_blocks=1), TextSideConfig(tune="last", last_blocks=2)
    )
    blocks = {name.split(".")[0] + name.split(".")[2] for name in names if ".blocks." in name}
    assert blocks == {"image3", "text1", "text2"}
    assert {n for n in names if ".blocks." not in n} == {
        *("image.ln_post.weight", "image.ln_post.bias", "image.proj"),
        *("text.ln_final.weight", "text.ln_final.bias", "text.proj", "logit_scale"),
    }


def test_low_rank_updates_of_both_towers() -> None:
    names = trained(ImageSideConfig(tune="lora"), TextSideConfig(tune="lora", lora_rank=2))
    updates = {name for name in names if ".parametrizations." in name}
    assert names - updates == {"logit_scale"}
    # qkv, out, up and down of 4 and 3 blocks, each with two factors.
    assert len(updates) == 2 * 4 * (4 + 3)


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        ({"tune": "frozen"}, {"tune": "frozen"}, "both towers are frozen"),
        ({"tune": "last", "last_blocks": 9}, {}, "image_side.last_blocks is 9"),
        ({"tune": "last"}, {}, "go together"),
        ({}, {"last_blocks": 2}, "go together"),
        ({}, {"tune": "lora", "embeddings": "minilm", "dim": 4}, "is for a text tower"),
        ({}, {"tune": "lora", "lora_rank": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(image: dict, text: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(ImageSideConfig(**image), TextSideConfig(**text))
