"""Text encoders beside texts encoded one by one in plain steps, in float64."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.model.text_encoders import open_text_encoder
from tessera.model.text_encoders.encoder import pool
from tessera.model.text_encoders.lora import LoraConfig, add_lora, save_lora
from tessera.model.text_encoders.opening import _check_sees_later_tokens

TEXTS = ["a red house", "dog", "an old man stands near the beach and a tree", "", "the sky is blue"]
INSTRUCTION = "a picture with the number of"


def states_alone(folder: Path, ids: list[int], attends: Tensor) -> Tensor:
    """[L, E] float64 states of one text under a mask [L, L] that is written out."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return model(torch.tensor([ids]), attention_mask=attends[None, None]).last_hidden_state[0]


def ids_of(folder: Path, text: str, *, special: bool) -> list[int]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(text, add_special_tokens=special)["input_ids"]


@pytest.mark.parametrize("name", ["llama", "qwen"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_language_model_gives_the_mean_state_of_the_text(
    name: str, bidirectional: bool, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    encoder = open_text_encoder(folder, bidirectional=bidirectional)
    batch = encoder.tokenise(TEXTS, [INSTRUCTION, "", INSTRUCTION, "", ""])
    found = encoder(batch.ids, batch.mask, batch.pooled)
    assert found.shape == (len(TEXTS), encoder.dim)
    assert found.dtype == torch.float32
    instruction = ids_of(folder, INSTRUCTION, special=False)
    for row, text in enumerate(TEXTS):
        ids = ids_of(folder, text, special=False) or [2]
        before = instruction if row in (0, 2) else []
        whole = torch.ones(len(before) + len(ids), len(before) + len(ids), dtype=torch.bool)
        states = states_alone(folder, before + ids, whole if bidirectional else whole.tril())
        torch.testing.assert_close(
            found[row].double(), states[len(before) :].mean(dim=0), rtol=1e-4, atol=1e-5
        )


def test_the_start_token_is_read_and_not_pooled(llama: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    folder = shutil.copytree(llama, tmp_path / "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    batch = open_text_encoder(folder).tokenise(["a dog"], [INSTRUCTION])
    count = len(ids_of(llama, INSTRUCTION, special=False))
    assert batch.ids[0].tolist() == ids_of(folder, f"{INSTRUCTION} a dog", special=True)
    assert batch.ids[0, 0] == 1
    assert batch.pooled[0].tolist() == [False] * (1 + count) + [True] * 2


@pytest.mark.parametrize("name", ["llama", "qwen"])
@pytest.mark.parametrize("others", [[], ["an old man stands near the beach and a tree"]])
def test_a_token_sees_later_ones_with_and_without_padding(
    name: str, others: list[str], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    for bidirectional in (True, False):
        encoder = open_text_encoder(folder, bidirectional=bidirectional)
        first = []
        for text in ("a red dog", "a red cat"):
            batch = encoder.tokenise([text, *others])
            first.append(encoder.states(batch.ids, batch.mask)[0, 0])
        assert torch.equal(*first) != bidirectional


@pytest.mark.parametrize("name", ["llama", "qwen", "sentence_encoder"])
def test_padding_changes_nothing(name: str, request: pytest.FixtureRequest) -> None:
    encoder = open_text_encoder(request.getfixturevalue(name))
    together = encoder.encode(TEXTS)
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_a_sentence_encoder_pools_all_its_tokens_to_unit_length(sentence_encoder: Path) -> None:
    encoder = open_text_encoder(sentence_encoder)
    assert encoder.description["pooling"] == "mean"
    long = " ".join(["old tree"] * 30)
    found = encoder.encode([*TEXTS, long])
    for row, text in enumerate([*TEXTS, long]):
        ids = ids_of(sentence_encoder, text, special=True)
        ids = [*ids[:19], 2] if len(ids) > 20 else ids
        whole = torch.ones(len(ids), len(ids), dtype=torch.bool)
        mean = states_alone(sentence_encoder, ids, whole).mean(dim=0)
        torch.testing.assert_close(found[row].double(), mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_pooling_by_hand() -> None:
    states = torch.arange(24.0).reshape(2, 3, 4).bfloat16()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    pooled = torch.tensor([[False, True, False], [False, True, True]])
    assert pool(states, mask, pooled, "mean")[:, 0].tolist() == [4.0, 18.0]
    assert pool(states, mask, pooled, "cls")[:, 0].tolist() == [0.0, 12.0]
    assert pool(states, mask, pooled, "last")[:, 0].tolist() == [4.0, 20.0]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by mean_tokens, max"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "prompt before"),
    ],
)
def test_what_a_sentence_encoder_does_otherwise_is_refused(
    sentence_encoder: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(sentence_encoder, tmp_path / "other")
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | change))
    with pytest.raises(ValueError, match=message):
        open_text_encoder(folder)


def test_an_unknown_step_of_a_sentence_encoder_is_refused(
    sentence_encoder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sentence_encoder, tmp_path / "other")
    text = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(text.replace("Normalize", "Dense"))
    with pytest.raises(ValueError, match="lists Transformer, Pooling, Dense"):
        open_text_encoder(folder)


def test_an_encoder_without_its_modules_is_refused(sentence_encoder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = shutil.copytree(sentence_encoder, tmp_path / "bert")
    (folder / "modules.json").unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token, tokenizer.cls_token = None, "<s>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"modules\.json"):
        open_text_encoder(folder)


def test_a_pickle_is_not_opened(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(llama, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot open"):
        open_text_encoder(folder)


def test_the_revision_follows_the_weights(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "renamed")
    description = open_text_encoder(llama).description
    (folder / "README.md").write_text("not a part of the model")
    assert open_text_encoder(folder).description["revision"] == description["revision"]
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert open_text_encoder(folder).description["revision"] != description["revision"]


def test_an_adapter_is_added_and_belongs_to_its_model(
    llama: Path, qwen: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    plain = open_text_encoder(llama)
    trained = open_text_encoder(llama)
    adapted = add_lora(trained.backbone, LoraConfig(rank=4, dropout=0.0))
    trained.backbone = adapted
    torch.testing.assert_close(trained.encode(TEXTS), plain.encode(TEXTS))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_lora(adapted, tmp_path / "adapter", plain.description["revision"])
    found = open_text_encoder(llama, adapter=tmp_path / "adapter")
    torch.testing.assert_close(found.encode(TEXTS), trained.encode(TEXTS), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.encode(TEXTS), plain.encode(TEXTS), atol=1e-2)
    assert found.description["revision"] != plain.description["revision"]
    with pytest.raises(ValueError, match="was trained on the weights"):
        open_text_encoder(qwen, adapter=tmp_path / "adapter")
    (tmp_path / "adapter" / "base_model.json").unlink()
    with pytest.raises(FileNotFoundError, match="there is no adapter"):
        open_text_encoder(llama, adapter=tmp_path)


def test_a_model_that_stays_causal_is_refused(llama: Path) -> None:
    with pytest.raises(ValueError, match="keeps its causal mask"):
        _check_sees_later_tokens(open_text_encoder(llama, bidirectional=False), llama)


def test_limits_of_length(llama: Path) -> None:
    assert open_text_encoder(llama, max_tokens=4).tokenise(TEXTS).ids.shape[1] == 4
    with pytest.raises(ValueError, match="reads 2 to 512 tokens, max_tokens is 513"):
        open_text_encoder(llama, max_tokens=513)
    with pytest.raises(ValueError, match="leaves no room"):
        open_text_encoder(llama, max_tokens=6).tokenise(["a dog"], [INSTRUCTION])
