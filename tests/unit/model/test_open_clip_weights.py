"""Weights go to open_clip and back unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from tessera.model import Clip, build_clip
from tessera.model.open_clip_weights import dump, load, open_clip_config


@pytest.fixture
def clip() -> Clip:
    torch.manual_seed(0)
    return build_clip("tessera-demo")


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert set(left) == set(right)
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_round_trip_from_open_clip_is_bit_exact(clip: Clip) -> None:
    theirs = open_clip.CLIP(**open_clip_config(clip.config))
    load(clip, theirs.state_dict())
    assert_same(dump(clip), theirs.state_dict())


def test_round_trip_from_ours_is_bit_exact(clip: Clip) -> None:
    other = build_clip("tessera-demo")
    load(other, dump(clip))
    assert_same(dict(other.state_dict()), dict(clip.state_dict()))


def test_dump_loads_strictly_into_open_clip(clip: Clip, tmp_path: Path) -> None:
    # A name of its own: open_clip's registry of models outlives the test.
    path = tmp_path / "tessera-test-export.json"
    path.write_text(json.dumps(open_clip_config(clip.config)), encoding="utf-8")
    open_clip.add_model_config(path)
    theirs = open_clip.create_model("tessera-test-export", pretrained=None)
    theirs.load_state_dict(dump(clip), strict=True)
    weight = theirs.state_dict()["visual.conv1.weight"]
    assert weight.shape == (128, 3, 8, 8)
    # ours is [W, (y, x, channel)]
    assert torch.equal(weight[5, 2, 3, 4], clip.image.patch_embed.weight[5, (3 * 8 + 4) * 3 + 2])


def test_half_precision_weights_load_into_float32(clip: Clip) -> None:
    state = {name: value.half() for name, value in dump(clip).items()}
    load(clip, state)
    assert_same({name: value.half() for name, value in dump(clip).items()}, state)
    assert clip.logit_scale.dtype == torch.float32


def test_every_misfit_is_named_and_nothing_changes(clip: Clip) -> None:
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    state = {name: value + 1 for name, value in dump(clip).items()}
    del state["ln_final.bias"]
    state["visual.extra"] = torch.zeros(1)
    state["visual.proj"] = torch.zeros(128, 3)
    state["text_projection"] = state["text_projection"].double()
    with pytest.raises(ValueError, match="does not fit 'tessera-demo'") as error:
        load(clip, state)
    message = str(error.value)
    assert "missing ln_final.bias" in message
    assert "unexpected visual.extra" in message
    assert "visual.proj is [128, 3], wanted [128, 128]" in message
    assert "text_projection is torch.float64" in message
    assert_same(dict(clip.state_dict()), before)


def test_weights_of_another_model_are_refused(clip: Clip) -> None:
    with pytest.raises(ValueError, match=r"and \d+ more"):
        load(clip, dump(build_clip("tessera-xs-16")))
