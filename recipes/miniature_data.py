"""What miniatures run on: drawn pictures, captions of every kind, a random language model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.model.text_encoders import TextEncoder, open_text_encoder
from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.caption_mix import parse_weights
from tessera.pipeline.index.caption_readers import TableReader
from tessera.pipeline.index.dataset import open_dataset, parse_reference
from tessera.pipeline.index.embeddings import (
    EncoderRecord,
    open_text_embeddings,
    write_text_embeddings,
)
from tessera.pipeline.index.import_captions import ImportOptions, import_captions
from tessera.pipeline.index.select import Criteria, choose
from tessera.pipeline.index.selections import list_selections, write_selection
from tessera.pipeline.index.word_classes import read_word_classes, write_word_classes
from tessera.recipes import demo_scenes
from tessera.recipes.demo import DETAIL, draw_data
from tessera.recipes.demo_scenes import Split
from tessera.training import miniature
from tessera.training.config import TrainConfig
from tessera.training.miniature import ENCODER_DIM

_BATCH = 64
_SIZES: dict[Split, int] = {"train": 256, "heldout": 64}


def draw_miniature_data(config: TrainConfig) -> None:
    """Draw and index the pictures of a miniature, unless the run uses other data.

    Caption sources and the selection that the run names are made with them.
    """
    train = parse_reference(config.data.train_references[0])
    if train.index_dir != miniature.TRAIN:
        return
    draw_data(miniature.ROOT, _SIZES)
    for name, _ in parse_weights(config.data.captions):
        _write_captions_again(miniature.ROOT, name)
    _tag_captions(miniature.ROOT)
    if train.selection:
        _select_half(train.selection)


def _write_captions_again(root: Path, name: str) -> None:
    """Add four further captions of each training picture as a source, unless it is there.

    The texts go through a file and `import_captions`, as rewrites by a language model do.
    """
    index = open_index(root / "index" / "train")
    if name in index.sources:
        return
    path = root / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for key in index.keys(range(index.num_samples)):
            scene = demo_scenes.describe(0, "train", int(key))
            rng = demo_scenes.rng_of(0, "train", int(key), name)
            texts = demo_scenes.captions(rng, scene, 4, DETAIL["train"])
            file.write(json.dumps({"key": key, "caption": texts}) + "\n")
    reader = TableReader(files=(path,), text_columns=("caption",), key_column="key", stem=False)
    import_captions(index, name, reader, ImportOptions())


def _select_half(name: str) -> None:
    """Store a selection of half of the miniature's training pictures, unless it is there."""
    dataset = open_dataset(miniature.TRAIN)
    if name not in list_selections(dataset.index):
        half = dataset.num_samples // 2
        rows = choose(dataset, Criteria(limit=half)).rows[""]
        command = ["--out", name, "--limit", str(half)]
        write_selection(dataset.index, name, rows, {"command": command})


def _tag_captions(root: Path) -> None:
    """Find the word classes of the training captions, by a lexicon of the words that are drawn."""
    adjectives = [
        *demo_scenes.COLOURS,
        *(word for words in demo_scenes.SIZES.values() for word in words),
    ]
    nouns = [*demo_scenes.SHAPES, *demo_scenes.BACKGROUNDS]
    tags = dict.fromkeys(adjectives, "JJ") | dict.fromkeys(nouns, "NN")
    lexicon = root / "words.tsv"
    index = open_index(root / "index" / "train")
    for source in index.sources:
        table = index.captions(source)
        try:
            read_word_classes(table)
        except ValueError:
            lines = [f"{word}\t{tag}\n" for word, tag in tags.items()]
            lexicon.write_text("".join(lines), encoding="utf-8")
            write_word_classes(table, str(lexicon), num_workers=1)


def embed_miniature(encoder: Path, name: str, sources: Mapping[Path, Sequence[str]]) -> None:
    """Make the encoder and the embeddings of a miniature, as far as they are not there.

    Args:
        encoder: folder of the encoder.
        name: of the embeddings.
        sources: caption sources of each index.
    """
    indexes = {folder: open_index(folder) for folder in sources}
    if not (encoder / "model.safetensors").is_file():
        words = {
            word
            for folder, names in sources.items()
            for source in names
            for text in indexes[folder].captions(source).text.to_pylist()
            for word in text.split()
        }
        _save_encoder(encoder, sorted(words))
    opened = open_text_encoder(encoder)
    for folder, names in sources.items():
        for source in names:
            _embed(indexes[folder], name, source, opened)


def _save_encoder(folder: Path, words: Sequence[str]) -> None:
    """A Llama of two small layers whose tokens are words; the same weights each time."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    special = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), *words])}
    inner = Tokenizer(WordLevel(vocabulary, special["unk"]))
    inner.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    named = {f"{name}_token": token for name, token in special.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaModel(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=ENCODER_DIM,
                intermediate_size=2 * ENCODER_DIM,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=512,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _embed(index: Index, name: str, source: str, encoder: TextEncoder) -> None:
    record = EncoderRecord(**encoder.description)
    try:
        if open_text_embeddings(index, name, source).encoder.identity == record.identity:
            return
    except ValueError:
        pass  # none yet
    texts = index.captions(source).text.to_pylist()

    def batches() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(texts), _BATCH):
            yield encoder.encode(texts[start : start + _BATCH]).numpy()

    write_text_embeddings(index, name, source, record, batches())
