"""Random language and vision-language models, saved as real ones are, with words as tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = [
    *("a", "the", "red", "green", "blue", "yellow", "white", "purple", "old", "small", "large"),
    *("picture", "with", "number", "of", "dog", "cat", "house", "tree", "sky", "beach", "street"),
    *("runs", "stands", "near", "on", "in", "and", "man", "woman", "is", "=>", "\n"),
]
IMAGE = "<image>"
IMAGE_SIZE = 32
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
}
_CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %} =>"
)


def word_tokenizer() -> Any:
    """One token for each word, one for the end of a line, one for a picture."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "<s>", "</s>", "<unk>", IMAGE, *WORDS]
    vocabulary = {word: number for number, word in enumerate(words)}
    split, pattern = tokenizers.pre_tokenizers.Split, tokenizers.Regex
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [split(pattern(r"\n"), "isolated"), split(pattern(" +"), "removed")]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[IMAGE],
    )


def save_llama(folder: Path) -> Path:
    """A language model."""
    transformers = pytest.importorskip("transformers")
    tokenizer = word_tokenizer()
    torch.manual_seed(3)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **_LLAMA)
    model = transformers.LlamaForCausalLM(config)
    # Far from uniform, so that the likeliest token does not hang on the last bit.
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_llava(folder: Path, chat_template: str | None = _CHAT) -> Path:
    """A vision-language model whose answers repeat the prompt, with a chat template."""
    transformers = pytest.importorskip("transformers")
    tokenizer = word_tokenizer()
    torch.manual_seed(4)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), **_LLAMA),
        vision_config=transformers.CLIPVisionConfig(**_VISION),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=0.5)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE}, crop_size=size
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_blip(folder: Path) -> Path:
    """A captioner without a chat template; it needs no prompt."""
    transformers = pytest.importorskip("transformers")
    tokenizer = word_tokenizer()
    # As BERT's, which BLIP has: it cuts the end token off and writes behind the prompt.
    tokenizer.backend_tokenizer.post_processor = pytest.importorskip(
        "tokenizers"
    ).processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    torch.manual_seed(5)
    text = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": 32,
            "sep_token_id": 2,
            **text,
        },
        vision_config=_VISION,
        projection_dim=32,
    )
    model = transformers.BlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.text_decoder.cls.predictions.decoder.weight, std=0.5)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and ("crossattention" in name or "patch_embedding" in name):
            torch.nn.init.normal_(weight, std=1.0)
    processor = transformers.BlipProcessor(
        image_processor=transformers.BlipImageProcessor(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer=tokenizer,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
