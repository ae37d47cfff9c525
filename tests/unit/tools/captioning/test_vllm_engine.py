"""What is asked of vLLM and made of its answers, with tests/stand_in_vllm.py in its place."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tessera.model.local_transformers import open_part
from tessera.tools.captioning.engine import Decoding, choose_backend
from tessera.tools.captioning.language_model import LanguageModel
from tests import stand_in_vllm
from tests.stand_in_vllm import LLM, SamplingParams

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PROMPTS = ["a dog =>", "a small red house near the beach and a tree =>", "cat"] * 20


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return stand_in_vllm.install(monkeypatch)


def opened(folder: Path, decoding: Decoding | None = None) -> LanguageModel:
    return LanguageModel(folder, decoding or Decoding(max_new_tokens=20), 4, GPU, "vllm")


def test_answers_end_with_the_line_and_belong_to_their_prompts(
    llama: Path, vllm: ModuleType
) -> None:
    model = opened(llama)
    found = model.continue_lines(PROMPTS, seed=7)
    assert {one.finished for one in found} == {True, False}
    assert not any("\n" in one.text or one.text != one.text.strip() for one in found)
    assert all(len(one.text.split()) == 20 for one in found if not one.finished)
    assert model.continue_lines(PROMPTS, seed=7) == found
    assert model.continue_lines(PROMPTS, seed=8) != found
    # A prompt beyond the context is not handed over, and the others keep their order.
    longer = model.continue_lines(["a dog " * 300, *PROMPTS[:3]], seed=7)
    assert (longer[0].text, longer[0].finished) == ("", False)
    assert longer[1:] == found[:3]
    assert model.continue_lines(["a dog " * 300], seed=7) == longer[:1]


def test_what_vllm_is_asked_for(
    llama: Path, vllm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[list[int]], list[SamplingParams]]] = []
    generate = LLM.generate

    def recorded(self: LLM, prompts, params, *, use_tqdm):
        asked.append(([each["prompt_token_ids"] for each in prompts], params))
        return generate(self, prompts, params, use_tqdm=use_tqdm)

    monkeypatch.setattr(LLM, "generate", recorded)
    model = opened(llama, Decoding(temperature=0.5, top_p=0.8, max_new_tokens=9))
    llm = model._engine._llm  # pyright: ignore[reportAttributeAccessIssue]
    assert Path(llm.model) == llama.resolve()
    assert (llm.trust_remote_code, llm.load_format) == (False, "safetensors")
    assert (llm.max_model_len, llm.max_num_seqs, llm.enable_prefix_caching) == (512, 4, False)

    model.continue_lines(["a dog =>"] * 3, seed=2**63 - 2)
    ids, params = asked[0]
    assert ids == [open_part(llama, "AutoTokenizer")("a dog =>")["input_ids"]] * 3
    # Equal prompts of one call must not get equal texts; the largest seed has a next one.
    assert [each.seed for each in params] == [2**63 - 2, 2**63 - 1, 0]
    assert all(
        (each.temperature, each.top_p, each.max_tokens, each.stop) == (0.5, 0.8, 9, ["\n"])
        for each in params
    )


def test_a_chat_model_may_begin_its_answer_with_an_empty_line(
    llama: Path, tmp_path: Path, vllm: ModuleType
) -> None:
    folder = shutil.copytree(llama, tmp_path / "chat")
    tokenizer = open_part(folder, "AutoTokenizer")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    found = opened(folder).answer(PROMPTS, seed=7)
    assert not any("\n" in one.text for one in found)
    assert len({one.text for one in found}) > 40


def test_a_context_is_no_longer_than_the_tokenizer_says(
    llama: Path, tmp_path: Path, vllm: ModuleType
) -> None:
    folder = shutil.copytree(llama, tmp_path / "short")
    tokenizer = open_part(folder, "AutoTokenizer")
    tokenizer.model_max_length = 40
    tokenizer.save_pretrained(folder)
    found = opened(folder).continue_lines(["a dog " * 10, "a dog " * 11], seed=7)
    assert found[0].text
    assert not found[1].text


def test_a_temperature_that_vllm_refuses_is_refused_before_the_model_is_opened(
    llama: Path, vllm: ModuleType
) -> None:
    with pytest.raises(ValueError, match="at most 2"):
        opened(llama, Decoding(temperature=2.5))


def test_auto_takes_vllm_where_it_can_run_and_says_so(
    vllm: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose_backend("auto", GPU) == "vllm"
    assert choose_backend("auto", torch.device("cuda:0")) == "vllm"
    assert capsys.readouterr().out == "backend    vllm\n" * 2
    for device, reason in ((CPU, "not on cpu"), (torch.device("cuda:1"), "CUDA_VISIBLE_DEVICES=1")):
        assert choose_backend("auto", device) == "transformers"
        assert reason in capsys.readouterr().out
        with pytest.raises(ValueError, match=reason):
            choose_backend("vllm", device)
    assert choose_backend("transformers", GPU) == "transformers"


def test_without_vllm_it_is_refused_and_auto_does_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert choose_backend("auto", GPU) == "transformers"
    assert "vLLM is not installed" in capsys.readouterr().out
    with pytest.raises(ValueError, match="vLLM is not installed"):
        choose_backend("vllm", GPU)


def test_a_vllm_built_for_another_torch_is_no_vllm(
    vllm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> object:
        raise ImportError(f"undefined symbol, looking for {name}")

    monkeypatch.delattr(vllm, "LLM")
    vllm.__getattr__ = load  # vLLM loads its parts when they are asked for
    assert choose_backend("auto", GPU) == "transformers"
    with pytest.raises(ValueError, match=r"cannot be imported.*undefined symbol"):
        choose_backend("vllm", GPU)
