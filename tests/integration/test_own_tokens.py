"""Models with a tokenizer of their own are trained and measured on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pytest

from tessera import train
from tessera.model.config import TextConfig, clip_config
from tessera.model.own_tokens import OwnTokens, own_tokens
from tessera.pipeline import LoaderConfig, open_loader
from tessera.pipeline.index import open_index
from tessera.training.metrics import read_records
from tests.tiny_models import word_tokenizer

TEXTS = ("a red dog", "the old house near a tree and the beach on a small street", "zebra")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "set_up_logging", lambda *_args, **_options: None)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A CLIP of open_clip's whose captions a tokenizer in a folder makes, read as SigLIP's are."""
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    text = {
        "context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 2,
        "hf_tokenizer_name": str(tmp_path / "tokenizer"), "no_causal_mask": True,
        "pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"},
    }  # fmt: skip
    content = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-own.json").write_text(json.dumps(content))
    known = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**known, "tiny-own": content})
    return "tiny-own"


def test_captions_are_open_clips_ids_with_the_padding_that_the_tower_sees(
    model: str, coloured_index: Path
) -> None:
    text = clip_config(model).text
    theirs = open_clip.get_tokenizer(model)(list(TEXTS), context_length=8).numpy()
    tokens, offsets = OwnTokens(text)(TEXTS)
    assert offsets.tolist() == [0, 8, 16, 24]
    assert tokens.tolist() == theirs.flatten().tolist()
    config = LoaderConfig(
        batch_size=4, image_size=32, patch_size=8, context_length=8, tokenise=OwnTokens(text)
    )
    with open_loader(coloured_index, config) as loader:
        batch = next(loader)
        table = open_index(coloured_index).captions()
        rows, bounds = table.rows(batch.sample_ids.numpy())
        every = OwnTokens(text)(table.texts(rows))[0].reshape(-1, 8).tolist()
    batch.check()
    for number, ids in enumerate(batch.tokens.view(4, 8).tolist()):
        assert ids in every[bounds[number] : bounds[number + 1]]


def test_a_causal_tower_gets_a_caption_up_to_its_end_token(model: str) -> None:
    own = clip_config(model).text.tokenizer
    text = TextConfig(context_length=8, pool="eos", eos_id=2, tokenizer=own, width=64, heads=2)
    tokens, offsets = OwnTokens(text)(TEXTS[:1])
    assert offsets.tolist() == [0, len(tokens)]


def test_a_run_is_trained_measured_and_resumed_on_its_own_tokens(
    model: str, coloured_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path, *more: str) -> int:
        words = {
            "--data.train": coloured_index, "--model": model, "--run-dir": folder,
            "--evaluation.retrieval": coloured_index, "--batch-size": 8, "--total-samples": 32,
            "--save-every": 2, "--accumulation": 2, "--data.num-threads": 1, "--num-threads": 1,
            "--device": "cpu", "--precision": "float32",
        }  # fmt: skip
        plain = [str(word) for pair in words.items() for word in pair]
        return train.main(["flickr8k", *plain, "--evaluation.zero-shot", *more])

    assert run(tmp_path / "whole") == 0
    whole = [record.loss for record in read_records(tmp_path / "whole" / "metrics.jsonl")]
    copies = [tmp_path / "again", tmp_path / "other"]
    for copy in copies:
        shutil.copytree(tmp_path / "whole", copy)
        shutil.rmtree(copy / "checkpoints" / "step_000000004")
        (copy / "evaluation.json").unlink()
    assert run(copies[0]) == 0
    assert [r.loss for r in read_records(copies[0] / "metrics.jsonl")] == whole
    file = tmp_path / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace('"zebra"', '"horse"').replace('"dog"', '"hound"'))
    own_tokens.cache_clear()  # as in a new process
    assert run(copies[1]) == 1
    assert "trained with the tokenizer" in capsys.readouterr().err


def test_what_cannot_be_tokenised_is_refused(tmp_path: Path) -> None:
    text = TextConfig(tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="cannot be opened"):
        OwnTokens(text)
    with pytest.raises(ValueError, match="take truncate"):
        LoaderConfig(tokenise=lambda _: None, text_reduction="random")  # pyright: ignore[reportArgumentType]
