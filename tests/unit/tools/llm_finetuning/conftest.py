"""A caption set and a random language model that knows its words."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
import torch

from tessera.pipeline.index import ScanOptions, build_index
from tests.conftest import jpeg_bytes, write_tar

NUM_SAMPLES = 48
_DRAWN = [
    "a {0} dog runs on the {1}",
    "the {0} dog is running across a {1}",
    "dog , {0} , {1}",
]


def captions_of(number: int, real: list[list[str]]) -> list[str]:
    """Real captions where they are at hand, drawn ones otherwise."""
    if real:
        return real[number]
    return [text.format(f"colour{number % 7}", f"place{number // 7}") for text in _DRAWN]


def real_captions() -> list[list[str]]:
    root = Path(__file__).resolve().parents[4]
    folder = Path(os.environ.get("TESSERA_DATA", root.parent / "shared" / "data")) / "flickr8k-dev"
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        return []
    found: list[list[str]] = []
    with tarfile.open(paths[0]) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if member.name.endswith(".json") and content is not None:
                found.append(json.load(content)["captions"])
            if len(found) == NUM_SAMPLES:
                break
    return found


@pytest.fixture(scope="session")
def caption_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 48 samples with several captions each; the last sample has one."""
    folder = tmp_path_factory.mktemp("captions")
    real, members = real_captions(), []
    for number in range(NUM_SAMPLES):
        captions = captions_of(number, real)[: 1 if number == NUM_SAMPLES - 1 else None]
        members += [
            (f"{number:05d}.jpg", jpeg_bytes(number, (16, 16))),
            (f"{number:05d}.json", json.dumps({"captions": captions}).encode()),
        ]
    write_tar(folder / "00000.tar", members)
    build_index(
        [folder / "00000.tar"], folder / "index", options=ScanOptions(captions="json:captions")
    )
    return folder / "index"


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a token for each word of the captions."""
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("llm") / "llama"
    real = real_captions()
    texts = [text for n in range(NUM_SAMPLES) for text in captions_of(n, real)]
    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = {word: n for n, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder
