"""A local language model beside plain, one-by-one generation."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tessera.model.local_transformers import open_model, open_part
from tessera.tools.captioning.checkpoint import model_identity
from tessera.tools.captioning.engine import Completion, Decoding
from tessera.tools.captioning.language_model import LanguageModel
from tessera.tools.captioning.transformers_engine import newline_ids

CPU = torch.device("cpu")
GREEDY = Decoding(temperature=0, max_new_tokens=12)
PROMPTS = ["a dog =>", "a small red house near the beach and a tree =>", "cat", "the sky is =>"]


def alone(folder: Path, prompt: str, max_new_tokens: int) -> tuple[str, bool]:
    """The likeliest tokens one after the other, by forward passes without padding or cache."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(max_new_tokens):
        with torch.no_grad():
            best = model(ids).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
        if best.item() == tokenizer.eos_token_id or "\n" in tokenizer.decode(best[0]):
            break
    text = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    ended = ids[0, -1].item() == tokenizer.eos_token_id or "\n" in text
    return text.partition("\n")[0].strip(), ended


def test_batches_of_any_size_give_what_each_prompt_gives_alone(llama: Path) -> None:
    expected = [alone(llama, prompt, 12) for prompt in PROMPTS]
    for batch_size in (1, 3, 4):
        found = LanguageModel(llama, GREEDY, batch_size, CPU).continue_lines(PROMPTS, seed=0)
        assert [(one.text, one.finished) for one in found] == expected
    assert len({text for text, _ in expected}) > 1


def test_a_line_ends_the_text_and_counts_as_finished(llama: Path) -> None:
    drawn = LanguageModel(llama, Decoding(max_new_tokens=60), 16, CPU)
    found = drawn.continue_lines(["a dog =>"] * 64, seed=5)
    assert any(one.finished for one in found)
    assert not any("\n" in one.text for one in found)
    assert all(len(one.text.split()) <= 60 for one in found)
    assert len({one.text for one in found}) > 32


def test_sampling_depends_on_the_seed_only(llama: Path) -> None:
    model = LanguageModel(llama, Decoding(max_new_tokens=8), 4, CPU)
    first = model.continue_lines(PROMPTS, seed=1)
    assert model.continue_lines(PROMPTS, seed=2) != first
    assert model.continue_lines(PROMPTS, seed=1) == first


def test_a_prompt_beyond_the_context_is_not_finished_and_spoils_no_other(llama: Path) -> None:
    model = LanguageModel(llama, GREEDY, 4, CPU)
    found = model.continue_lines(["a dog " * 260, PROMPTS[0]], seed=0)
    assert found[0].text == ""
    assert not found[0].finished
    assert found[1] == model.continue_lines(PROMPTS[:1], seed=0)[0]


def test_what_announces_an_answer_is_no_answer(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LanguageModel(llama, GREEDY, 4, CPU)
    model._tokenizer.chat_template = "{{ messages[0]['content'] }}"
    said = [
        "Sure! My caption:\n\n A dog runs. \n\nMore.",
        "\nA cat: asleep\nYes.",
        "So:",
        "",
    ]
    written = [Completion(text=text, finished=True) for text in said]
    monkeypatch.setattr(model, "_complete", lambda *_, **__: written)
    found = [each.text for each in model.answer(["a"] * 4, seed=0)]
    assert found == ["A dog runs.", "A cat: asleep", "So:", ""]


def test_settings_of_the_checkpoint_do_not_act(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "other")
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) | {"repetition_penalty": 50.0, "top_k": 1}
    path.write_text(json.dumps(settings))
    plain = LanguageModel(llama, GREEDY, 4, CPU).continue_lines(PROMPTS, seed=0)
    assert LanguageModel(folder, GREEDY, 4, CPU).continue_lines(PROMPTS, seed=0) == plain


def test_a_chat_template_is_used_for_questions_only(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "chat")
    tokenizer = open_part(folder, "AutoTokenizer")
    tokenizer.chat_template = "{% for m in messages %}old {{ m['content'] }} and the{% endfor %}"
    tokenizer.save_pretrained(folder)
    plain = LanguageModel(llama, GREEDY, 4, CPU)
    chat = LanguageModel(folder, GREEDY, 4, CPU)
    assert chat.continue_lines(PROMPTS, seed=0) == plain.continue_lines(PROMPTS, seed=0)
    wrapped = [f"old {prompt} and the" for prompt in PROMPTS]
    answers = [one.text for one in chat.answer(PROMPTS, seed=0)]
    for answer, line in zip(answers, plain.continue_lines(wrapped, seed=0), strict=True):
        # A chat model may begin with empty lines; a line's continuation ends at the first.
        assert answer.startswith(line.text)
    assert plain.answer(PROMPTS, seed=0) == plain.continue_lines(PROMPTS, seed=0)


def test_ends_of_lines_are_found_in_a_byte_level_vocabulary() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    inner = tokenizers.ByteLevelBPETokenizer()
    inner.train_from_iterator(["a dog.\n\n", "a cat.\n"] * 20, vocab_size=280)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer)
    expected = [n for t, n in tokenizer.get_vocab().items() if "Ċ" in t]  # how it spells \n
    assert newline_ids(tokenizer) == sorted(expected)
    assert len(expected) > 1


def test_missing_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama, tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights.*up_proj"):
        open_model(folder, "AutoModelForCausalLM", CPU)


def test_what_cannot_be_opened_is_named(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="hf download"):
        open_model(tmp_path, "AutoModelForCausalLM", CPU)
    with pytest.raises(ValueError, match="AutoModelForImageTextToText of transformers"):
        open_model(llama, "AutoModelForImageTextToText", CPU)


def test_without_transformers_the_command_that_installs_it_is_named(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers"):
        open_model(llama, "AutoModelForCausalLM", CPU)


def test_other_weights_are_another_model(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "llama")
    assert model_identity(folder) == model_identity(llama)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert model_identity(folder)["fingerprint"] != model_identity(llama)["fingerprint"]
    assert model_identity(folder)["architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        Decoding(**wrong)  # pyright: ignore[reportArgumentType]
