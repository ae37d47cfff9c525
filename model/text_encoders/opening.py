"""Open a text encoder from a local folder: a language model, or a sentence encoder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessera.model.local_transformers import check_folder, open_model, open_part
from tessera.model.text_encoders.encoder import Pooling, TextEncoder
from tessera.model.text_encoders.lora import with_lora
from tessera.model.text_encoders.tokens import LanguageModelTokens, SentenceTokens

MODULES = "modules.json"
"""What makes a folder a sentence encoder: its steps, in the layout of sentence-transformers."""
_MAX_TOKENS = 512
# Of what transformers' encoders hold, only the token states are read.
_UNUSED = ("pooler.",)
_HASHED = ("*.json", "*.safetensors", "*.txt", "*.model", "*/config.json")


def open_text_encoder(
    path: Path,
    *,
    adapter: Path | None = None,
    pooling: Pooling | None = None,
    max_tokens: int | None = None,
    bidirectional: bool = True,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """Open an encoder; nothing is downloaded, and no pickle or code of the folder is read.

    A folder with a `modules.json` is a sentence encoder in the layout of sentence-transformers: it
    says itself how it pools and whether vectors have unit length. Any other is a causal language
    model, read as LLM2CLIP does (arXiv 2411.04997, after LLM2Vec, arXiv 2404.05961): without the
    causal mask, the mean over the tokens of the text.

    Args:
        path: the folder.
        adapter: a folder of LoRA weights for a language model, added to it; of
            tools/finetune_llm.py or peft.
        pooling: of a language model; None is mean.
        max_tokens: longest text with all that is put around it; None takes a sentence encoder's
            own, and 512 for a language model.
        bidirectional: False leaves a language model its causal mask.
        device: where it runs; None is the CPU.
        dtype: precision of weights and states.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it cannot be opened, or what is asked for is not what it can do.
    """
    check_folder(path)
    device = device or torch.device("cpu")
    if (path / MODULES).is_file():
        if pooling is not None or adapter is not None:
            raise ValueError(f"{path} says in {MODULES} how it pools, and takes no adapter")
        return _sentence_encoder(path, max_tokens, device, dtype)
    return _language_model(
        path, adapter, pooling or "mean", max_tokens, bidirectional, device, dtype
    )


def revision_of(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of a model's configuration, vocabulary and weights."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _HASHED for file in folder.glob(pattern)}):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _language_model(
    path: Path,
    adapter: Path | None,
    pooling: Pooling,
    max_tokens: int | None,
    bidirectional: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> TextEncoder:
    tokenizer = open_part(path, "AutoTokenizer")
    if tokenizer.bos_token_id is None and tokenizer.cls_token_id is not None:
        raise ValueError(
            f"{path} holds an encoder and no language model: put the {MODULES} of its "
            "sentence-transformers folder there, which says how it pools"
        )
    backbone = open_model(path, "AutoModel", device, dtype=dtype, unused=_UNUSED)
    backbone.config.use_cache = False
    revision = revision_of(path)
    if adapter is not None:
        backbone = with_lora(backbone, adapter, revision).eval()
        revision = hashlib.sha256((revision + revision_of(adapter)).encode()).hexdigest()
    longest = _longest(path, backbone.config, max_tokens, _MAX_TOKENS)
    name = path.resolve().name + (f"+{adapter.resolve().name}" if adapter else "")
    direction = "both directions" if bidirectional else "causal"
    encoder = TextEncoder(
        backbone,
        LanguageModelTokens(tokenizer, longest),
        _description(
            name, path, revision, pooling, backbone, dtype,
            f"attention in {direction}, up to {longest} tokens",
        ),
        pooling=pooling,
        unit_length=False,
        bidirectional=bidirectional,
    )  # fmt: skip
    if bidirectional:
        _check_sees_later_tokens(encoder, path)
    return encoder


def _sentence_encoder(
    path: Path, max_tokens: int | None, device: torch.device, dtype: torch.dtype
) -> TextEncoder:
    pooling, unit_length = _read_modules(path)
    tokenizer = open_part(path, "AutoTokenizer")
    backbone = open_model(path, "AutoModel", device, dtype=dtype, unused=_UNUSED)
    settings = _read_json(path / "sentence_bert_config.json")
    own = settings.get("max_seq_length") or min(_MAX_TOKENS, tokenizer.model_max_length)
    longest = _longest(path, backbone.config, max_tokens, own)
    length = "unit length" if unit_length else "length as it is"
    return TextEncoder(
        backbone,
        SentenceTokens(tokenizer, longest, bool(settings.get("do_lower_case"))),
        _description(
            path.resolve().name, path, revision_of(path), pooling, backbone, dtype,
            f"{length}, up to {longest} tokens",
        ),
        pooling=pooling,
        unit_length=unit_length,
        bidirectional=False,
    )  # fmt: skip


def _read_modules(path: Path) -> tuple[Pooling, bool]:
    """How a sentence encoder pools, and whether it brings vectors to unit length.

    Raises:
        ValueError: it has a step or a pooling that is not known here.
    """
    modules = json.loads((path / MODULES).read_text(encoding="utf-8"))
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ValueError(
            f"{path / MODULES} lists {', '.join(kinds)}; known are Transformer, Pooling and, "
            "perhaps, Normalize"
        )
    if modules[0]["path"]:
        raise ValueError(f"{path / MODULES}: the model must lie beside it, not in a folder")
    if _read_json(path / "config_sentence_transformers.json").get("default_prompt_name"):
        raise ValueError(f"{path} puts a prompt before every text, which is not supported")
    settings = json.loads((path / modules[1]["path"] / "config.json").read_text(encoding="utf-8"))
    known: dict[str, Pooling] = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
    prefix = "pooling_mode_"
    chosen = [n.removeprefix(prefix) for n, on in settings.items() if n.startswith(prefix) and on]
    if len(chosen) != 1 or chosen[0] not in known:
        raise ValueError(
            f"{path} pools by {', '.join(chosen) or 'nothing'}; known are {', '.join(known)}"
        )
    return known[chosen[0]], "Normalize" in kinds


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _longest(path: Path, config: Any, wanted: int | None, default: int) -> int:
    """Most tokens of a text."""
    positions = getattr(config, "max_position_embeddings", None)
    if wanted is not None and not 2 <= wanted <= (positions or wanted):
        raise ValueError(f"{path} reads 2 to {positions} tokens, max_tokens is {wanted}")
    return wanted or min(default, positions or default)


def _description(
    name: str,
    path: Path,
    revision: str,
    pooling: Pooling,
    backbone: nn.Module,
    dtype: torch.dtype,
    settings: str,
) -> dict[str, Any]:
    config: Any = backbone.config
    return {
        "id": name,
        "path": str(path.resolve()),
        "revision": revision,
        "pooling": pooling,
        "dim": config.hidden_size,
        "dtype": str(dtype).removeprefix("torch."),
        "settings": settings,
    }


@torch.inference_mode()
def _check_sees_later_tokens(encoder: TextEncoder, path: Path) -> None:
    """See that the last token changes the state of the first.

    A model with a mask of its own may not know the switch, and would stay causal unseen.
    """
    ids = torch.tensor([[1, 1, 0], [1, 1, 2]], device=encoder.device)
    one, other = encoder.states(ids, torch.ones_like(ids, dtype=torch.bool))[:, 0]
    if torch.equal(one, other):
        raise ValueError(
            f"{path} keeps its causal mask: transformers' class for it knows no other; take "
            "another model, or leave it causal"
        )
