"""Which models tools/evaluate.py takes, and with what pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera.model.config import clip_config
from tessera.model.open_clip_config import open_clip_config
from tessera.tools import evaluate as evaluate_tool


def test_published_weights_bring_their_own_pixel_statistics() -> None:
    """Refused before: the weights' mean is not that of the other weights of this model."""
    config = evaluate_tool.as_published(clip_config("ViT-L-14"), "laion2b_s32b_b82k")
    assert config.vision.pixel_mean == config.vision.pixel_std == (0.5, 0.5, 0.5)
    assert evaluate_tool.as_published(clip_config("ViT-L-14"), "model.pt") == clip_config(
        "ViT-L-14"
    )
    with pytest.raises(ValueError, match="squash"):
        evaluate_tool.as_published(clip_config("ViT-L-14-CLIPA"), "datacomp1b")


def test_a_folder_that_wants_another_resize_is_refused(tmp_path: Path) -> None:
    config = {"model_cfg": open_clip_config(clip_config("tessera-demo"))}
    config["preprocess_cfg"] = {"resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    asked = evaluate_tool.Arguments(checkpoint=str(tmp_path), retrieval=("anything",))
    with pytest.raises(ValueError, match="squash"):
        evaluate_tool.load_model(asked)
