"""What the training benchmark counts and compares, against independent sources."""

from __future__ import annotations

import pickle
import time
from typing import Any

import open_clip
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tessera.model.config import clip_config
from tessera.tools.benchmarks.train_comparison import TITLES, Plan, caption_lengths, compare
from tessera.tools.benchmarks.train_flops import Work, step_flops
from tessera.tools.benchmarks.train_lengths import (
    CC12M_MEAN_TOKENS,
    cc12m_captions,
    visible_patches,
)
from tessera.tools.benchmarks.train_sides import (
    OpenClipStep,
    OwnStep,
    PaddedClusterStep,
    StepSetting,
    kept_patches,
)
from tessera.tools.benchmarks.turns import Entrant, Results, Turn

MODEL = "ViT-S-32-alt"
CONFIG = clip_config(MODEL)
NUM_PATCHES = CONFIG.vision.num_patches
SETTING = StepSetting(
    model=MODEL,
    batch_size=3,
    device="cpu",
    precision="float32",
    num_workers=1,
    visible=(10, 20, 30),
    captions=(5, 40, 12),
)


def counted(side: OwnStep | OpenClipStep) -> int:
    """Operations of forward and backward, counted by torch."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        images, texts, scale = side.features()
        (images.sum() + texts.sum() + scale).backward()
    return counter.get_total_flops()


def test_flops_of_packed_towers() -> None:
    work = Work(
        image_tokens=[n + 1 for n in SETTING.visible],
        embedded_patches=sum(SETTING.visible),
        text_tokens=SETTING.captions,
        pooled_only=True,
    )
    assert counted(OwnStep(SETTING)) == pytest.approx(step_flops(CONFIG, work), rel=1e-3)


@pytest.mark.parametrize(
    ("build", "kept"),
    [(OpenClipStep, NUM_PATCHES), (PaddedClusterStep, kept_patches(NUM_PATCHES))],
)
def test_flops_of_padded_towers(build: type[OpenClipStep], kept: int) -> None:
    work = Work(
        image_tokens=[kept + 1] * 3,
        embedded_patches=NUM_PATCHES * 3,
        text_tokens=[CONFIG.text.context_length] * 3,
        pooled_only=False,
    )
    assert counted(build(SETTING)) == pytest.approx(step_flops(CONFIG, work), rel=1e-3)


def test_padding_of_the_padded_form_is_hidden() -> None:
    side = PaddedClusterStep(SETTING)
    tower: Any = side._model.visual
    kept = kept_patches(NUM_PATCHES)
    assert tower.mask.shape == (3 * CONFIG.vision.heads, kept + 1, kept + 1)
    visible_keys = (tower.mask == 0).sum(dim=2)[:: CONFIG.vision.heads, 0]
    assert visible_keys.tolist() == [11, 21, 31]
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        before = tower(images)
        hidden = tower.visual.patch_dropout.kept[0, 11:] - 1
        grid, size = CONFIG.vision.grid_size, CONFIG.vision.patch_size
        for patch in hidden.tolist():
            y, x = divmod(patch, grid)
            images[0, :, y * size : (y + 1) * size, x * size : (x + 1) * size] += 5
        after = tower(images)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_open_clip_side_is_open_clip() -> None:
    side = OpenClipStep(SETTING)
    plain: Any = open_clip.create_model(MODEL)
    plain.load_state_dict(side._model.state_dict())
    wanted = plain.encode_image(side._images, normalize=True)
    torch.testing.assert_close(side.features()[0], wanted)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 256, 1000])
def test_caption_lengths_have_the_mean_they_are_said_to_have(batch_size: int) -> None:
    lengths = cc12m_captions(batch_size, 77)
    assert len(lengths) == batch_size
    assert sum(lengths) / batch_size == pytest.approx(CC12M_MEAN_TOKENS, abs=0.5)
    assert min(lengths) >= 3
    assert max(lengths) <= 77
    assert cc12m_captions(batch_size, 77) == lengths


def test_visible_patches_are_what_an_exact_budget_leaves() -> None:
    for ratio in (0.0, 0.5, 0.75):
        counts = visible_patches(16, 196, ratio)
        assert sum(counts) == round(16 * 196 * (1 - ratio))
    assert (min(visible_patches(16, 196, 0.5)), max(visible_patches(16, 196, 0.5))) == (61, 135)


def test_captions_of_an_index(coloured_index) -> None:
    lengths = caption_lengths(str(coloured_index), 8, 77)
    assert len(lengths) == 8
    assert max(lengths) < 20


def in_this_process(
    entrants: dict[str, Entrant], *, num_batches: int, repeats: int, progress: object
) -> Results:
    """`take_turns` without its processes, each of which would import everything again."""
    results = Results()
    for name, entrant in entrants.items():
        sent = pickle.loads(pickle.dumps(entrant))
        side = sent.build(sent.setting)
        for _ in range(repeats):
            start = time.perf_counter()
            work = side.run(num_batches)
            turn = Turn(
                num_images=work.num_images,
                seconds=time.perf_counter() - start,
                cpu_s=0.0,
                memory_bytes=0,
                known=work.known,
            )
            results.turns.setdefault(name, []).append(turn)
        side.close()
    return results


def test_comparison_of_all_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.tools.benchmarks.train_comparison.take_turns", in_this_process)
    plan = Plan(setting=SETTING, captions="cc12m", sides=tuple(TITLES))
    result = compare(plan, num_steps=1, repeats=1, progress=lambda _text: None)
    assert not result["left_out"]
    assert set(result["sides"]) == set(TITLES)
    for name, side in result["sides"].items():
        assert side["pairs_per_s"]["median"] > 0
        assert 0 < side["utilisation"] < 2, name  # above 1 only by the noise of a shared machine
        assert side["peak_memory_bytes"] > 300e6
        assert sum(side["share_of_step"].values()) == pytest.approx(1)
    flops = {name: side["flops_per_pair"] for name, side in result["sides"].items()}
    assert flops["ours_75"] < flops["ours_50"] < flops["ours_0"] < flops["ours_full"]
    assert flops["ours_full"] < flops["open_clip"]
    assert set(result["ratios"]["ours_50"]) == {"open_clip", "open_clip_drop50", "padded_cluster"}
