"""State dicts of every plain ViT that open_clip lists, by names and shapes, without memory."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

from tessera.model import build_clip, open_clip_weights
from tessera.model.config import ClipConfig, clip_config


def plain_configs() -> list[ClipConfig]:
    names = [name for name in open_clip.list_models() if name.startswith("ViT-")]
    return [clip_config(name) for name in names if "SigLIP" not in name]


@pytest.mark.parametrize("config", plain_configs(), ids=lambda config: config.name)
def test_names_and_shapes_are_open_clips_both_ways(config: ClipConfig) -> None:
    raw: Any = open_clip.get_model_config(config.name)
    with torch.device("meta"):
        theirs = open_clip.CLIP(**raw).state_dict()
        clip = build_clip(config)
    dumped = open_clip_weights.dump(clip)
    assert {name: value.shape for name, value in dumped.items()} == {
        name: value.shape for name, value in theirs.items()
    }
    open_clip_weights.load(clip, theirs)
