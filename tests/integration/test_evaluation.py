"""Evaluation over real tars: against open_clip's own classes and preprocessing, and pictures."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tessera.evaluation.compositional import SUGARCREPE_FILES
from tessera.evaluation.encoder import Encoder
from tessera.evaluation.image_sets import ImageFiles, IndexedImages, decode, evaluation_transform
from tessera.evaluation.labelled import read_prompts
from tessera.evaluation.linear_probe import Split, fit
from tessera.evaluation.records import lines
from tessera.evaluation.retrieval import evaluate_retrieval
from tessera.evaluation.scores import (
    LINEAR_PROBE,
    NUM_PROMPTS,
    RETRIEVAL,
    ZERO_SHOT,
    few_shot_metric,
    of_task,
    shots_of,
)
from tessera.evaluation.suite import Suite, evaluate
from tessera.evaluation.views import ViewConfig
from tessera.evaluation.zero_shot import class_features, evaluate_zero_shot
from tessera.model import Clip, build_clip, open_clip_weights
from tessera.pipeline import LoaderConfig, open_loader
from tessera.pipeline.index import ScanOptions, build_index, open_index
from tessera.pipeline.index.dataset import open_dataset
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.storage import folder_of, list_shards
from tessera.report.gallery import mask_gallery, retrieval_examples
from tessera.tools import evaluate as evaluate_tool
from tessera.tools.sharding import (
    ImageOptions,
    PackOptions,
    SourceOptions,
    make_shards,
    open_source,
)
from tests.compositional_sets import write_sugarcrepe, write_winoground
from tests.conftest import COLOURS, sample_members, write_tar

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return build_clip("tessera-demo").eval()


@pytest.fixture(scope="module")
def theirs(clip: Clip) -> open_clip.CLIP:
    """The same model in open_clip."""
    model = open_clip.CLIP(**open_clip_weights.open_clip_config(clip.config)).eval()
    model.load_state_dict(open_clip_weights.dump(clip))
    return model


def pictures(index_dir: str) -> list[Image.Image]:
    """All pictures of an index, by Pillow."""
    dataset = open_dataset(index_dir)
    images = IndexedImages(dataset, 1)
    files = images.read(np.arange(dataset.num_samples))
    images.close()
    return [Image.open(io.BytesIO(data)) for data in files if isinstance(data, bytes)]


def open_clip_image_features(
    theirs: open_clip.CLIP, images: Sequence[Image.Image], size: int
) -> torch.Tensor:
    transform: Any = open_clip.image_transform(size, is_train=False)
    batches = torch.stack([transform(image) for image in images]).split(128)
    with torch.inference_mode():
        return torch.cat([theirs.encode_image(batch, normalize=True) for batch in batches])


def test_features_are_those_of_open_clip_on_the_same_files(
    clip: Clip, theirs: open_clip.CLIP, coloured_index: Path
) -> None:
    place = str(coloured_index)
    ours = Encoder(clip=clip, batch_size=40, num_threads=2).images(
        place, IndexedImages(open_dataset(place), 2)
    )
    assert ours.sample_ids.tolist() == list(range(96))
    expected = open_clip_image_features(theirs, pictures(place), clip.config.vision.image_size)
    assert (ours.features - expected).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [(300, 200), (201, 333), (10, 90), (64, 64)])
def test_pixels_are_those_of_open_clip(clip: Clip, mode: str, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    ours = decode(buffer.getvalue(), evaluation_transform(clip.config))
    assert isinstance(ours, torch.Tensor)
    transform: Any = open_clip.image_transform(clip.config.vision.image_size, is_train=False)
    expected = transform(Image.open(buffer))
    torch.testing.assert_close(ours.permute(2, 0, 1), expected, rtol=0, atol=0)


def test_class_features_are_those_of_open_clip(
    clip: Clip, theirs: open_clip.CLIP, coloured_index: Path
) -> None:
    prompts = read_prompts(folder_of(open_index(coloured_index).shards[0].location))
    ours = class_features(Encoder(clip=clip, batch_size=4), prompts)
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    expected = open_clip.build_zero_shot_classifier(
        theirs, tokenizer, prompts.class_names, [lambda name: f"a {name} picture"]
    )
    assert (ours - expected.T).abs().max() < 1e-5


def test_a_data_set_is_evaluated_and_shown(clip: Clip, coloured_index: Path) -> None:
    done: list[int] = []
    encoder = Encoder(clip=clip, batch_size=32, num_threads=2, progress=done.append)
    place = str(coloured_index)
    zero_shot = evaluate_zero_shot(encoder, place)
    assert zero_shot is not None
    acc1 = zero_shot.scores[0]
    assert (acc1.metric, acc1.n, acc1.chance) == ("acc1", 96, 1 / 6)
    assert sum(done) == 96 + 6
    run = evaluate_retrieval(encoder, place)
    assert run is not None
    (rows,) = of_task(run.scores, RETRIEVAL)
    assert (rows.recalls("image_to_text")[1].n, rows.recalls("text_to_image")[1].n) == (96, 192)
    assert sum(done) == 96 + 6 + 192, "the pictures were encoded once"
    examples = retrieval_examples(run, open_index(coloured_index), clip.config, 4)
    assert {example.kind for example in examples} == {"text_to_image", "image_to_text"}
    for example in examples:
        scores = [score for _, score, _ in example.results]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 5


def test_a_broken_picture_is_left_out_and_counted(clip: Clip, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(4)]
    for n, path in enumerate(paths):
        Image.new("RGB", (40, 40), (60 * n, 0, 0)).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[2].unlink()
    found = Encoder(clip=clip, batch_size=2).images("test", ImageFiles(paths))
    assert found.places.tolist() == [0, 3]
    assert found.num_bad == 2
    with pytest.raises(ValueError, match="no picture of 2 could be decoded"):
        Encoder(clip=clip).images("test", ImageFiles(paths[1:3]))


def test_views_are_averaged_as_unit_features(clip: Clip, coloured_index: Path) -> None:
    place = str(coloured_index)

    def features(views: ViewConfig, batch_size: int = 32) -> torch.Tensor:
        images = IndexedImages(open_dataset(place), 1)
        return Encoder(clip=clip, views=views, batch_size=batch_size).images(place, images).features

    mask = MaskConfig(kind="random", mask_ratio=0.5)
    whole = features(ViewConfig())
    masked = features(ViewConfig(views="masked", mask=mask))
    both = features(ViewConfig(views="complementary", mask=mask))
    torch.testing.assert_close(both.norm(dim=1), torch.ones(96))
    torch.testing.assert_close(
        both, features(ViewConfig(views="complementary", mask=mask), 7), atol=1e-5, rtol=0
    )
    near_masked = (whole * masked).sum(dim=1).mean()
    assert near_masked < (whole * both).sum(dim=1).mean() < 1 - 1e-5


@pytest.mark.parametrize("name", ["caltech101-dev", "clothing"])
def test_predictions_are_those_of_open_clip_on_real_photos(
    clip: Clip, theirs: open_clip.CLIP, real_data: Path, tmp_path: Path, name: str
) -> None:
    options = ScanOptions(full_decode=False)
    build_index(list_shards(real_data / name), tmp_path / "index", options=options)
    place = str(tmp_path / "index")
    run = evaluate_zero_shot(Encoder(clip=clip, num_threads=2), place)
    assert run is not None
    prompts = read_prompts(real_data / name)
    templates = [lambda c, t=t: t.replace("{c}", c) for t in prompts.templates]
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    classifier = open_clip.build_zero_shot_classifier(
        theirs, tokenizer, prompts.class_names, templates
    )
    features = open_clip_image_features(theirs, pictures(place), clip.config.vision.image_size)
    predicted = (features @ classifier).argmax(dim=1)
    labels = torch.from_numpy(open_index(tmp_path / "index").label.astype(np.int64))
    assert torch.equal(run.predicted, predicted)
    assert run.scores[0].value == pytest.approx((predicted == labels).double().mean().item())


def test_retrieval_is_that_of_open_clip_on_real_photos(
    clip: Clip, theirs: open_clip.CLIP, real_data: Path, tmp_path: Path
) -> None:
    shards = list_shards(real_data / "flickr8k-dev")
    options = ScanOptions(captions="json:captions", full_decode=False)
    build_index(shards, tmp_path / "index", options=options)
    place = str(tmp_path / "index")
    run = evaluate_retrieval(Encoder(clip=clip, num_threads=2), place)
    assert run is not None
    texts = open_index(tmp_path / "index").captions().text.to_pylist()
    tokens = open_clip.SimpleTokenizer(context_length=32)(texts).split(256)
    with torch.inference_mode():
        text_features = torch.cat([theirs.encode_text(part, normalize=True) for part in tokens])
    images = open_clip_image_features(theirs, pictures(place), clip.config.vision.image_size)
    similarity = images @ text_features.T
    owner = torch.from_numpy(run.image_of_text)
    (rows,) = of_task(run.scores, RETRIEVAL)
    for k in (1, 5, 10):
        found = (owner[similarity.topk(k, dim=1).indices] == torch.arange(1000)[:, None]).any(1)
        recall = rows.recalls("image_to_text")[k].value
        assert recall == pytest.approx(found.double().mean().item())
        found = (similarity.T.topk(k, dim=1).indices == owner[:, None]).any(1)
        recall = rows.recalls("text_to_image")[k].value
        assert recall == pytest.approx(found.double().mean().item())


@pytest.mark.parametrize("decay", [1e-3, 1e-5])
def test_a_probe_on_real_photos_is_that_of_scikit_learn(
    clip: Clip, real_data: Path, tmp_path: Path, decay: float
) -> None:
    """Features of random weights, 5 photos a class to learn from and 5 to be asked."""
    sklearn = pytest.importorskip("sklearn.linear_model")
    shards = list_shards(real_data / "caltech101-dev")
    build_index(shards, tmp_path / "index", options=ScanOptions(full_decode=False))
    dataset = open_dataset(str(tmp_path / "index"))
    encoded = Encoder(clip=clip, num_threads=2).images("caltech", IndexedImages(dataset, 2))
    labels = torch.from_numpy(dataset.index.label[encoded.sample_ids].astype(np.int64))
    known = torch.argsort(labels, stable=True)[::2]
    asked = torch.argsort(labels, stable=True)[1::2]
    features = encoded.features
    theirs = sklearn.LogisticRegression(C=1 / (decay * len(known)), max_iter=5000, tol=1e-8).fit(
        features[known].double().numpy(), labels[known].numpy()
    )
    expected = theirs.score(features[asked].double().numpy(), labels[asked].numpy())
    found = fit(Split(features=features[known], labels=labels[known]), 101, decay)
    assert found.score(features[asked], labels[asked]).acc1 == pytest.approx(expected, abs=0.002)
    assert expected > 3 / 101, "even random weights tell something"


def run_tool(*words: object, ranks: int = 1) -> dict:
    starter = [sys.executable]
    if ranks > 1:
        starter += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*starter, "tools/evaluate.py", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_two_processes_measure_what_one_does(coloured_index: Path, tmp_path: Path) -> None:
    shards = coloured_index.parent / "shards"
    words = ("tessera-demo", "--captions", "json:captions", "--batch-size", 20)
    words = (*words, "--zero-shot", shards, "--retrieval", coloured_index)
    words = (*words, "--linear-probe", coloured_index, coloured_index)
    out = tmp_path / "out.json"
    one = run_tool(*words, "--out", out)
    two = run_tool(*words, ranks=2)
    assert two["num_ranks"] == 2
    assert one["results"] == two["results"]
    assert json.loads(out.read_text("utf-8")) == one
    tasks = {each["task"]: each for each in one["results"]}
    assert tasks["zeroshot_classification"]["dataset"] == str(shards)
    assert tasks["zeroshot_classification"]["metrics"].keys() == {
        *("acc1", "acc5", "mean_per_class_recall")
    }
    assert "image_retrieval_recall@5" in tasks["zeroshot_retrieval"]["metrics"]
    assert tasks["linear_probe"]["metrics"]["lp_acc1"] > 0.5, "colours are easy"


def test_every_folder_of_shards_has_an_index_of_its_own(
    coloured_index: Path, tmp_path: Path
) -> None:
    places = [tmp_path / "flickr" / "test", tmp_path / "flickr-test"]
    for place in places:
        shutil.copytree(coloured_index.parent / "shards", place)
    asked = evaluate_tool.Arguments(
        checkpoint="", retrieval=tuple(map(str, places)), captions="json:captions"
    )
    indexed = evaluate_tool.index_shards(asked, tmp_path / "indexes")
    for place in places:
        assert open_index(Path(indexed[str(place)])).shards[0].location.startswith(f"{place}/")


def test_labelled_shards_need_no_texts(tmp_path: Path) -> None:
    """As CLIP_benchmark writes them: a picture and its class, in a folder below the names."""
    place = tmp_path / "wds_colours" / "test"
    place.mkdir(parents=True)
    members = [m for n in range(30) for m in sample_members(n) if m[0].endswith((".jpg", ".cls"))]
    members += [("broken.jpg", b"no picture"), ("broken.cls", b"0"), ("unknown.jpg", b"")]
    write_tar(place / "0.tar", members)
    (place.parent / "classnames.txt").write_text("\n".join(COLOURS) + "\n", "utf-8")
    (place.parent / "zeroshot_classification_templates.txt").write_text("a {c}\n", "utf-8")
    found = run_tool("tessera-demo", "--zero-shot", place, "--linear-probe", place, place)
    tasks = {each["task"] for each in found["results"]}
    assert tasks == {"zeroshot_classification", "linear_probe"}
    assert found["rejected_samples"] == {str(place): {"not_an_image": 1, "bad_label": 1}}


def test_an_evaluation_that_cannot_be_ends_before_any_work(
    coloured_index: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        Suite(zero_shot=(str(coloured_index), str(tmp_path / "nothing"))).check()
    with pytest.raises(ValueError, match="TRAIN TEST"):
        Suite(linear_probe=("one",))
    with pytest.raises(ValueError, match="few_shot needs"):
        Suite(few_shot=(4,))


def test_sets_that_make_no_probe_are_refused_before_any_work(
    coloured_index: Path, tmp_path: Path
) -> None:
    place = str(coloured_index)  # 16 pictures of each class
    Suite(linear_probe=(place, place), few_shot=(12,)).check()
    with pytest.raises(ValueError, match="13 shots need 17 images of each class"):
        Suite(linear_probe=(place, place), few_shot=(1, 13)).check()
    shards = tmp_path / "shards"
    shutil.copytree(coloured_index.parent / "shards", shards)
    (shards / "classnames.txt").write_text("\n".join(reversed(COLOURS)), "utf-8")
    build_index(list_shards(shards), tmp_path / "index")
    with pytest.raises(ValueError, match="same class names"):
        Suite(linear_probe=(place, str(tmp_path / "index"))).check()


def test_a_probe_on_its_own_training_pictures_is_doubted(
    coloured_index: Path, tmp_path: Path
) -> None:
    place, shards = str(coloured_index), list_shards(coloured_index.parent / "shards")
    (doubt,) = Suite(linear_probe=(place, place)).check()
    assert doubt.startswith(f"96 of the 96 pictures of the test set {place} are also in")
    build_index(shards[:1], tmp_path / "part")
    (doubt,) = Suite(linear_probe=(str(tmp_path / "part"), place)).check()
    num_shared = open_index(tmp_path / "part").num_samples
    assert doubt.startswith(f"{num_shared} of the 96 pictures"), "another index of the same shards"
    build_index(shards[1:], tmp_path / "rest")
    assert Suite(linear_probe=(str(tmp_path / "part"), str(tmp_path / "rest"))).check() == []
    for kind in ("train", "test"):
        for number, name in enumerate(["a", "b"]):
            (tmp_path / kind / name).mkdir(parents=True)
            for n in range(5):
                image = Image.new("RGB", (40, 40), (number, n, 0))
                image.save(tmp_path / kind / name / f"{n}.png")
    train, test = str(tmp_path / "train"), str(tmp_path / "test")
    assert Suite(linear_probe=(train, test)).check() == []
    (doubt,) = Suite(linear_probe=(train, f"{train}/")).check()
    assert doubt.startswith("10 of the 10 pictures")


@pytest.mark.parametrize(
    ("text", "captions", "is_doubted"),
    [
        ("one\ntwo\nthree\n", "txt", True),
        ("one\n\n", "txt", False),
        ("one\ntwo\nthree\n", "lines", False),
    ],
)
def test_captions_of_several_lines_are_doubted(
    text: str, captions: str, is_doubted: bool, tmp_path: Path
) -> None:
    members = [(name, data) for n in range(6) for name, data in sample_members(n)]
    members = [(n, text.encode() if n.endswith(".txt") else data) for n, data in members]
    write_tar(tmp_path / "0.tar", members)
    index = tmp_path / "index"
    build_index([str(tmp_path / "0.tar")], index, options=ScanOptions(captions=captions))
    doubts = Suite(retrieval=(str(index),)).check()
    assert [("3 lines" in doubt, "--captions lines" in doubt) for doubt in doubts] == (
        [(True, True)] if is_doubted else []
    )


def test_the_tool_says_its_doubts_by_the_names_it_was_given(tmp_path: Path) -> None:
    place = tmp_path / "wds" / "test"
    place.mkdir(parents=True)
    members = [(name, data) for n in range(30) for name, data in sample_members(n)]
    members = [(n, b"one\ntwo\n" if n.endswith(".txt") else data) for n, data in members]
    write_tar(place / "0.tar", members)
    done = subprocess.run(
        [sys.executable, "tools/evaluate.py", "tessera-demo", "--retrieval", str(place)],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert f"warning: {place}: a text has 2 lines" in done.stderr


def test_class_folders_and_their_shards_have_the_same_score(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for number, colour in enumerate(COLOURS):
        (folder / f"very_{colour}").mkdir(parents=True)
        for n in range(3):
            image = folder / f"very_{colour}" / f"{n}.jpg"
            image.write_bytes(dict(sample_members(number + 6 * n))[f"{number + 6 * n:09d}.jpg"])
    source = open_source(folder, SourceOptions(labels_from_folders=True))
    make_shards(source, tmp_path / "shards", images=ImageOptions(), options=PackOptions())
    build_index(list_shards(tmp_path / "shards"), tmp_path / "index")
    torch.manual_seed(0)
    encoder = Encoder(clip=build_clip("tessera-demo").eval())
    suite = Suite(zero_shot=(str(folder), str(tmp_path / "index")))
    outcome = evaluate(encoder, suite)
    ours, theirs = of_task(outcome.scores, ZERO_SHOT)
    for metric, (row,) in ours.rows.items():
        assert row == replace(theirs[metric], dataset=row.dataset)
    assert ours[NUM_PROMPTS].value == 6 * 80
    assert "6 classes, 480 prompts, chance 16.7%" in lines(outcome.scores)[0]


def test_few_shots_of_a_suite(clip: Clip, coloured_index: Path) -> None:
    place = str(coloured_index)
    suite = Suite(linear_probe=(place, place), few_shot=(1, 4), few_shot_seeds=2)
    outcome = evaluate(Encoder(clip=clip), suite)
    (rows,) = of_task(outcome.scores, LINEAR_PROBE)
    assert shots_of(rows) == [1, 4]
    assert all(len(rows.draws(few_shot_metric(shots))) == 2 for shots in (1, 4))
    assert rows["lp_acc1"].n == 96


def test_the_gallery_shows_what_the_model_gets(coloured_index: Path) -> None:
    config = LoaderConfig(
        batch_size=16, image_size=64, patch_size=8, context_length=32, mask=MaskConfig()
    )
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


def test_compositional_sets_are_measured_as_open_clip_measures(
    clip: Clip, theirs: open_clip.CLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights drawn by --seed 0 are those of the fixture."""
    sugar = write_sugarcrepe(tmp_path / "sugarcrepe")
    winoground = write_winoground(tmp_path / "winoground")
    words = ["tessera-demo", "--sugarcrepe", str(sugar), "--winoground", str(winoground)]
    assert evaluate_tool.main(words) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    found = {each["dataset"].removeprefix(f"{tmp_path}/"): each["metrics"] for each in results}

    def similarity(pictures: list[Path], texts: list[str]) -> torch.Tensor:
        images = [Image.open(path) for path in pictures]
        features = open_clip_image_features(theirs, images, clip.config.vision.image_size)
        with torch.inference_mode():
            tokens = open_clip.SimpleTokenizer(context_length=32)(texts)
            return features @ theirs.encode_text(tokens, normalize=True).T

    for kind in SUGARCREPE_FILES:
        hits = []
        for each in json.loads((sugar / f"{kind}.json").read_text()).values():
            texts = [each["caption"], each["negative_caption"]]
            (right, wrong) = similarity([sugar / "val2017" / each["filename"]], texts)[0]
            hits.append(bool(right > wrong))
        assert found[f"sugar_crepe/{kind}"]["acc"] == pytest.approx(np.mean(hits))
    group = []
    for line in (winoground / "data" / "examples.jsonl").read_text().splitlines():
        each = json.loads(line)
        pictures = [winoground / "images" / f"{each[f'image_{n}']}.png" for n in (0, 1)]
        (a, b), (c, d) = similarity(pictures, [each["caption_0"], each["caption_1"]]).tolist()
        group.append(a > b and d > c and a > c and d > b)
    assert found["winoground"]["acc"] == pytest.approx(np.mean(group))
