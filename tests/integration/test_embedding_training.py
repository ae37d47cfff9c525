"""Training on stored embeddings: what is refused at the start, and that runs go on exactly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import train
from tessera.pipeline.index import open_index
from tessera.pipeline.index.embeddings import EncoderRecord, write_text_embeddings
from tessera.tools import embed_captions, evaluate
from tessera.training.metrics import read_records
from tests.tiny_models import save_llama

ROOT = Path(__file__).resolve().parents[2]
E = 24
ENCODER = EncoderRecord(
    id="hashes", path="nowhere", revision="1" * 64, pooling="mean", dim=E, dtype="float32"
)


def embed(folder: Path, encoder: EncoderRecord = ENCODER, name: str = "fake") -> None:
    """Store noise that stands for each text's embedding."""
    index = open_index(folder)
    count = index.captions().num_texts
    noise = np.random.default_rng(5).normal(size=(count, encoder.dim))
    write_text_embeddings(index, name, "caption", encoder, [noise])


@pytest.fixture(scope="module")
def index(coloured_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The coloured pictures with an index of our own that has embeddings."""
    folder = tmp_path_factory.mktemp("embedded") / "coloured"
    shutil.copytree(coloured_index.parent, folder)
    embed(folder / "index")
    return folder / "index"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "set_up_logging", lambda *_args, **_options: None)


def command(index: Path, run_dir: Path, *more: str, steps: int = 4) -> list[str]:
    fixed = {
        "--data.train": index,
        "--evaluation.retrieval": index,
        "--run-dir": run_dir,
        "--model": "tessera-demo",
        "--total-samples": 16 * steps,
        "--batch-size": 16,
        "--save-every": 2,
        "--log-every": 2,
        "--text-side.embeddings": "fake",
        "--text-side.dim": E,
        "--num-threads": 1,
        "--device": "cpu",
        "--precision": "float32",
    }
    return ["flickr8k", *(str(word) for pair in fixed.items() for word in pair), *more]


def run(index: Path, run_dir: Path, *more: str, steps: int = 4) -> int:
    return train.main(command(index, run_dir, *more, steps=steps))


def losses(run_dir: Path) -> list[float]:
    return [record.loss for record in read_records(run_dir / "metrics.jsonl")]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--text-side.keep-text", "--accumulation", "2"),
        (
            "--text-side.tune",
            "lora",
            "--text-side.keep-text",
            "--image-side.tune",
            "last",
            "--image-side.last-blocks",
            "1",
            "--optim.image-learning-rate",
            "1e-4",
        ),
        ("--image-side.tune", "lora", "--image-side.lora-rank", "2"),
        ("--image-side.tune", "frozen", "--text-side.embed-dim", "48"),
        ("--image-side.self-distillation", "0.5", "--optim.ema-samples", "32"),
        ("--text-side.distill", "--accumulation", "2"),
    ],
    ids=lambda words: words[0] if words else "plain",
)
def test_a_run_is_trained_measured_and_goes_on_bit_for_bit(
    more: tuple[str, ...], index: Path, tmp_path: Path
) -> None:
    assert run(index, tmp_path / "whole", *more) == 0
    whole = losses(tmp_path / "whole")
    assert len(whole) == 4
    assert all(np.isfinite(whole))
    copy = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", copy)
    shutil.rmtree(copy / "checkpoints" / "step_000000004")
    (copy / "evaluation.json").unlink()
    assert run(index, copy, *more) == 0
    assert losses(copy) == whole
    newest = "checkpoints/step_000000004/open_clip_model.safetensors"
    first, second = (load_file(folder / newest) for folder in (tmp_path / "whole", copy))
    assert all(bool((first[name] == second[name]).all()) for name in first)
    scores = json.loads((copy / "evaluation.json").read_text())
    assert {row["n"] for row in scores["scores"] if "image_retrieval" in row["metric"]} == {192}


def test_chunks_do_not_change_what_is_learned(index: Path, tmp_path: Path) -> None:
    both = ("--text-side.keep-text",)
    assert run(index, tmp_path / "one", *both) == 0
    assert run(index, tmp_path / "two", *both, "--accumulation", "2") == 0
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--text-side.dim", "32"), ("text_side.dim is 32", "have 24 numbers")),
        (("--text-side.embeddings", "other"), ("no embeddings 'other'", "fake/caption")),
        (("--evaluation.zero-shot", "INDEX"), ("prompts of", "--evaluation.text-encoder")),
        (("--image-side.self-distillation", "1"), ("optim.ema_samples",)),
    ],
    ids=["dim", "name", "prompts", "average"],
)
def test_what_does_not_fit_is_refused_at_the_start(
    more: tuple[str, ...],
    words: tuple[str, ...],
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = tuple(word.replace("INDEX", str(index)) for word in more)
    assert run(index, tmp_path / "run", *more) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not (tmp_path / "run" / "checkpoints" / "step_000000002").exists()


def test_missing_rows_are_refused_with_both_numbers(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "coloured"
    shutil.copytree(index.parent, folder)
    (folder / "index" / "embeddings" / "fake" / "caption" / "00000.f16").unlink()
    assert run(folder / "index", tmp_path / "run") == 2
    assert "192 of the 192 embeddings" in capsys.readouterr().err


def test_a_checkpoint_refuses_the_embeddings_of_another_encoder(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run_dir = tmp_path / "coloured", tmp_path / "run"
    shutil.copytree(index.parent, folder)
    assert run(folder / "index", run_dir) == 0
    (run_dir / "evaluation.json").unlink()
    store = folder / "index" / "embeddings" / "fake" / "caption" / "embeddings.json"
    store.write_text(store.read_text().replace("1" * 64, "2" * 64))
    assert run(folder / "index", run_dir) == 1
    message = capsys.readouterr().err
    assert "sha256:1111111111111111 (mean)" in message
    assert "sha256:2222222222222222 (mean)" in message


@pytest.mark.parametrize(
    "more",
    [
        ("--distributed.strategy", "ddp", "--text-side.keep-text", "--accumulation", "2"),
        ("--distributed.strategy", "fsdp", "--optim.layer-decay", "0.7"),
    ],
    ids=["ddp", "fsdp"],
)
def test_two_ranks_learn_what_one_does(more: tuple[str, ...], index: Path, tmp_path: Path) -> None:
    assert run(index, tmp_path / "one", *more) == 0
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*starter, "train.py", *command(index, tmp_path / "two", *more)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-3)


def test_the_tool_measures_such_a_model_with_its_encoder_alive(
    coloured_index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prompts need the encoder; captions come out the same whether stored or embedded anew."""
    llama = save_llama(tmp_path / "llama")
    folder = tmp_path / "coloured"
    shutil.copytree(coloured_index.parent, folder)
    words = [str(folder / "index"), "--encoder", str(llama), "--name", "fake"]
    monkeypatch.setattr(sys, "argv", ["embed_captions.py", *words])
    assert embed_captions.main() == 0
    run_dir = tmp_path / "run"
    live = ("--evaluation.text-encoder", str(llama))
    live = (*live, "--evaluation.zero-shot", str(folder / "index"))
    assert run(folder / "index", run_dir, "--text-side.dim", "32", *live) == 0
    scores = json.loads((run_dir / "evaluation.json").read_text())
    asked = [str(run_dir), "--zero-shot", str(folder / "index"), "--retrieval"]
    # The first index has stored embeddings, the second, of the same pictures, has none.
    asked += [str(folder / "index"), str(coloured_index)]
    capsys.readouterr()
    assert evaluate.main(asked) == 2
    assert "--text-encoder" in capsys.readouterr().err
    assert evaluate.main([*asked, "--text-encoder", str(llama)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    by_task = [(each["task"], each["metrics"]) for each in found]
    value = {row["metric"]: row["value"] for row in scores["scores"]}
    assert by_task[0][1]["acc1"] == pytest.approx(value["acc1"])
    stored, embedded = (metrics for task, metrics in by_task if task == "zeroshot_retrieval")
    assert stored["image_retrieval_recall@5"] == pytest.approx(value["image_retrieval_recall@5"])
    for name, value in stored.items():
        assert embedded[name] == pytest.approx(value, abs=0.02), name
