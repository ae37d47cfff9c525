"""tools/embed_captions.py: what it stores, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.model.text_encoders import open_text_encoder
from tessera.pipeline.index import open_index
from tessera.pipeline.index.embeddings import EmbeddingWriter, open_text_embeddings
from tessera.tools import embed_captions
from tests.conftest import write_tar
from tests.tiny_models import save_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def index(coloured_index: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(coloured_index, tmp_path / "index"))


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embed_captions.py", *map(str, arguments)])
        status = embed_captions.main()
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_every_text_gets_the_vector_it_has_alone(tool: Any, index: Path, llama: Path) -> None:
    status, out, _ = tool(
        index, "--encoder", llama, "--name", "tiny", "--batch-size", 7, "--rows-per-part", 50
    )
    assert status == 0
    result = json.loads(out.splitlines()[-1])
    opened = open_index(index)
    store = open_text_embeddings(opened, "tiny", "caption")
    texts = opened.captions().texts(np.arange(192))
    encoder = open_text_encoder(llama)
    alone = np.concatenate([encoder.encode([text]).numpy() for text in texts])
    np.testing.assert_allclose(store.lookup(np.arange(192)), alone, rtol=2e-3, atol=2e-3)
    assert result["num_texts"] == 192
    assert result["fingerprints"] == {"caption": store.fingerprint}
    assert store.encoder.revision == encoder.description["revision"]


def test_a_killed_run_goes_on_with_the_parts_that_are_missing(
    tool: Any, index: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (index, "--encoder", llama, "--name", "tiny", "--rows-per-part", 50)
    write, written = EmbeddingWriter.write, []

    def write_two(writer: EmbeddingWriter, part: int, embeddings: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(part)
        write(writer, part, embeddings)

    with monkeypatch.context() as patched:
        patched.setattr(EmbeddingWriter, "write", write_two)
        assert tool(*command)[0] == 130
    with pytest.raises(ValueError, match="92 of the 192 embeddings"):
        open_text_embeddings(open_index(index), "tiny", "caption")
    status, out, _ = tool(*command)
    assert status == 0
    assert json.loads(out.splitlines()[-1])["num_texts"] == 92
    open_text_embeddings(open_index(index), "tiny", "caption")


def test_ranks_share_the_parts(tool: Any, index: Path, llama: Path) -> None:
    command = (index, "--encoder", llama, "--name", "tiny", "--rows-per-part", 50)
    left = []
    for rank in (1, 0):
        status, out, _ = tool(*command, "--rank", rank, "--world-size", 2)
        assert status == 0
        left.append(json.loads(out.splitlines()[-1])["parts_left"]["caption"])
    assert left == [2, 0]
    open_text_embeddings(open_index(index), "tiny", "caption")


def test_wrong_use_ends_with_2_and_says_why(tool: Any, index: Path, llama: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        tool(index, "--name", "tiny")
    assert ended.value.code == 2
    status, _, err = tool(index, "--name", "tiny", "--encoder", index)
    assert status == 2
    assert "no model in" in err
    assert tool(index, "--encoder", llama, "--name", "tiny")[0] == 0
    status, _, err = tool(index, "--encoder", llama, "--name", "tiny", "--causal")
    assert status == 2
    assert "causal" in err


def test_files_of_llm2clip_are_taken_over(tool: Any, index: Path, tmp_path: Path) -> None:
    # One text for each sample: keep the first of the two.
    from tessera.pipeline.index.arrow_file import map_batch, write_batch

    whole = map_batch(index / "captions" / "caption.arrow")
    write_batch(index / "captions" / "short.arrow", whole.take(list(range(0, 192, 2))))
    for shard in range(3):
        members = [
            (f"{n:09d}.shortSV_captions", np.full(4, n / 2, np.float32).tobytes())
            for n in range(shard * 32, shard * 32 + 32)
        ]
        write_tar(tmp_path / f"{shard:05d}_text_embeddings.tar", members)
    status, out, _ = tool(
        index, "--name", "released", "--import-llm2clip", tmp_path, "--sources", "short",
        "--field", "shortSV_captions", "--encoder-id", "llama-3-8b-cc",
    )  # fmt: skip
    assert status == 0
    assert json.loads(out.splitlines()[-1])["dim"] == 4
    store = open_text_embeddings(open_index(index), "released", "short")
    assert store.lookup(np.array([0, 95]))[:, 0].tolist() == [0.0, 47.5]
    assert store.encoder.id == "llama-3-8b-cc"
