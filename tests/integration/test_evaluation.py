"""Evaluation over real tars: against open_clip's own classes and preprocessing, and pictures."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from evaluation.features import encode_images, evaluation_config
from evaluation.gallery import mask_gallery, retrieval_examples
from evaluation.retrieval import evaluate_retrieval
from evaluation.zero_shot import class_features, evaluate_zero_shot, read_prompts
from model import Clip, build_clip, open_clip_weights
from pipeline import LoaderConfig, open_evaluation_loader, open_loader
from pipeline.index import open_index
from pipeline.masking import MaskConfig
from pipeline.patches import normalise, unpatchify
from pipeline.storage import folder_of


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return build_clip("tessera-demo").eval()


def test_features_are_those_of_open_clip_on_the_same_pixels(
    clip: Clip, coloured_index: Path
) -> None:
    config = evaluation_config(clip, 40, 1)
    ours = encode_images(clip, str(coloured_index), config)
    assert ours.sample_ids.tolist() == list(range(96))
    theirs = open_clip.CLIP(**open_clip_weights.open_clip_config(clip.config)).eval()
    theirs.load_state_dict(open_clip_weights.dump(clip))
    with open_evaluation_loader(coloured_index, config) as loader:
        patches = loader.preview(0).patches
    images = unpatchify(normalise(patches), (8, 8)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(theirs.encode_image(images), dim=1)
    assert (ours.features[:40] - expected).abs().max() < 1e-5


def test_class_features_are_those_of_open_clip(clip: Clip, coloured_index: Path) -> None:
    prompts = read_prompts(folder_of(open_index(coloured_index).shards[0].location))
    ours = class_features(clip, prompts, evaluation_config(clip, 4, 1))
    theirs = open_clip.CLIP(**open_clip_weights.open_clip_config(clip.config)).eval()
    theirs.load_state_dict(open_clip_weights.dump(clip))
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    expected = open_clip.build_zero_shot_classifier(
        theirs, tokenizer, prompts.class_names, [lambda name: f"a {name} picture"]
    )
    assert (ours - expected.T).abs().max() < 1e-5


def test_a_data_set_is_evaluated_and_shown(clip: Clip, coloured_index: Path) -> None:
    config = evaluation_config(clip, 32, 2)
    zero_shot = evaluate_zero_shot(clip, str(coloured_index), config).result
    assert (zero_shot.num_images, zero_shot.num_classes) == (96, 6)
    run = evaluate_retrieval(clip, str(coloured_index), config)
    assert (run.scores.num_images, run.scores.num_texts) == (96, 192)
    examples = retrieval_examples(run, open_index(coloured_index), config, 4)
    assert {example.kind for example in examples} == {"text_to_image", "image_to_text"}
    for example in examples:
        scores = [score for _, score, _ in example.results]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 5


def test_the_gallery_shows_what_the_model_gets(coloured_index: Path) -> None:
    config = LoaderConfig(batch_size=16, image_size=64, patch_size=8, context_length=32)
    with open_loader(coloured_index, config) as loader:
        batch = next(loader)
        items, ratios = mask_gallery(loader, 5)
    assert len(items) == 5
    assert len(ratios) == 16
    assert ratios.mean() == pytest.approx(0.5)
    for i, item in enumerate(items):
        image = slice(int(batch.image_offsets[i]), int(batch.image_offsets[i + 1]))
        assert np.flatnonzero(item.visible).tolist() == batch.positions[image].tolist()
        assert (item.cluster[item.visible] == -1).all()
        assert (item.cluster[~item.visible] >= 0).all()
        assert (~item.visible[item.anchors]).all()
        assert item.tokens[0] == "<start_of_text>"
        assert "picture</w>" in item.tokens


def test_the_gallery_of_a_random_mask_has_no_clusters(coloured_index: Path) -> None:
    config = LoaderConfig(batch_size=8, image_size=64, patch_size=8, mask=MaskConfig(kind="random"))
    with open_loader(coloured_index, config) as loader:
        items, _ = mask_gallery(loader, 2)
    assert all(len(item.anchors) == 0 and (item.cluster == -1).all() for item in items)
