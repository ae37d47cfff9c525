r"""Embed the captions of an index once, with a language model or a sentence encoder.

    python tools/embed_captions.py INDEX --encoder FOLDER --name NAME --sources caption rewrites
    torchrun --nproc-per-node 8 tools/embed_captions.py INDEX --encoder FOLDER --name NAME
    python tools/embed_captions.py INDEX --name NAME --sources short --import-llm2clip FOLDER \
        --field shortSV_captions

The embeddings lie beside the index as float16, one for each text, and training looks them up. A
killed run goes on where it stopped with the same command. Several processes share the work, by
torchrun or as `--rank` and `--world-size`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from tessera.model.text_encoders import Pooling, TextEncoder, open_text_encoder
from tessera.pipeline.index import DEFAULT_SOURCE, Index, open_index
from tessera.pipeline.index.captions import CaptionTable
from tessera.pipeline.index.embeddings import (
    ROWS_PER_PART,
    EmbeddingWriter,
    EncoderRecord,
    open_text_embeddings,
    write_text_embeddings,
)
from tessera.pipeline.index.llm2clip_archive import Llm2ClipArchive
from tessera.tools.captioning.checkpoint import choose_device, choose_dtype
from tessera.tools.captioning.program import run_program

_SECONDS_BETWEEN_LINES = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Embed the texts of caption sources."""

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    name: str
    """Of the embeddings; training names it."""
    encoder: Path | None = None
    """Folder of a causal language model (read with attention in both directions, mean of the text's
    tokens), or of a sentence encoder in the layout of sentence-transformers."""
    adapter: Path | None = None
    """LoRA weights for a language model, such as tools/finetune_llm.py writes."""
    sources: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")] = (DEFAULT_SOURCE,)
    """Caption sources."""
    pooling: Pooling | None = None
    """Of a language model: mean (the default), cls or last. A sentence encoder has its own."""
    causal: bool = False
    """Leave a language model its causal mask."""
    max_tokens: int | None = None
    """Longest text; by default 512, or what a sentence encoder says."""
    batch_size: int = 256
    """Texts that the model sees together; they have similar lengths."""
    rows_per_part: int = ROWS_PER_PART
    """Texts of a file: sorted by length, stored, and after a kill repeated, as one."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the model; auto is bfloat16 on a GPU and float32 on a CPU."""
    rank: int | None = None
    """Number of this process; by default torchrun's, or 0."""
    world_size: int | None = None
    """Processes that share the work; by default torchrun's, or 1."""
    import_llm2clip: Path | None = None
    """Folder of `NNNNN_text_embeddings.tar` that LLM2CLIP's code made; nothing is computed."""
    field: str = ""
    """With --import-llm2clip: which members, such as shortSV_captions."""
    encoder_id: str = "unknown"
    """With --import-llm2clip: name of the model that made them, which the files do not tell."""

    def __post_init__(self) -> None:
        if (self.encoder is None) == (self.import_llm2clip is None):
            raise ValueError("give --encoder, or --import-llm2clip with --field")
        if self.import_llm2clip and not (self.field and len(self.sources) == 1):
            raise ValueError("--import-llm2clip needs --field and one source")
        if self.batch_size < 1 or self.rows_per_part < 1:
            raise ValueError("--batch-size and --rows-per-part must be at least 1")
        if not 0 <= self.place[0] < self.place[1]:
            rank, size = self.place
            raise ValueError(f"--rank must be 0 to --world-size - 1, got {rank} of {size}")

    @property
    def place(self) -> tuple[int, int]:
        """Rank and number of the processes."""
        rank = int(os.environ.get("RANK", "0")) if self.rank is None else self.rank
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return rank, size if self.world_size is None else self.world_size


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_program(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    return embed(arguments) if arguments.import_llm2clip is None else import_archive(arguments)


def embed(arguments: Arguments) -> dict[str, Any]:
    """Embed this process's share of all sources; returns what became of it."""
    index = open_index(arguments.index)
    tables = {source: index.captions(source) for source in arguments.sources}
    encoder = _open_encoder(arguments)
    record = EncoderRecord(**encoder.description)
    rank, world_size = arguments.place
    writers = {
        source: EmbeddingWriter(index, arguments.name, source, record, arguments.rows_per_part)
        for source in tables
    }
    shares = {
        source: [part for part in writer.missing() if part % world_size == rank]
        for source, writer in writers.items()
    }
    num_texts = sum(len(writers[s].rows(part)) for s, parts in shares.items() for part in parts)
    start = time.perf_counter()
    interval = 0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    with tqdm(total=num_texts, unit=" texts", mininterval=interval) as bar:
        for source, parts in shares.items():
            for part in parts:
                rows = writers[source].rows(part)
                embeddings = encode_rows(encoder, tables[source], rows, arguments.batch_size, bar)
                writers[source].write(part, embeddings)
    seconds = time.perf_counter() - start
    left = {source: len(writer.missing()) for source, writer in writers.items()}
    rate = num_texts / seconds if num_texts else 0.0
    print(f"embedded   {num_texts:,} texts in {seconds:.1f} s, {rate:,.0f} a second")
    for source, count in left.items():
        done = f"{count} parts are left" if count else "complete"
        print(f"{source:10} {tables[source].num_texts:,} texts: {done}")
    return {
        "name": arguments.name,
        "encoder": encoder.description,
        "rank": rank,
        "world_size": world_size,
        "num_texts": num_texts,
        "seconds": round(seconds, 3),
        "texts_per_s": round(rate, 1),
        "parts_left": left,
        **_fingerprints(index, arguments.name, left),
    }


def encode_rows(
    encoder: TextEncoder,
    table: CaptionTable,
    rows: NDArray[np.int64],
    batch_size: int,
    bar: tqdm[Any],
) -> NDArray[np.float32]:
    """Embeddings of some texts, [len(rows), E], computed the longest first."""
    texts = table.texts(rows)
    found = np.empty((len(rows), encoder.dim), np.float32)
    # The longest first, so that a batch too large for the memory fails at once.
    order = np.argsort([-len(text) for text in texts], kind="stable")
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        found[places] = encoder.encode([texts[place] for place in places]).cpu().numpy()
        bar.update(len(places))
    return found


def import_archive(arguments: Arguments) -> dict[str, Any]:
    """Take over embeddings that LLM2CLIP's code made."""
    assert arguments.import_llm2clip is not None
    index, source = open_index(arguments.index), arguments.sources[0]
    archive = Llm2ClipArchive(arguments.import_llm2clip, index, source, arguments.field)
    record = EncoderRecord(
        id=arguments.encoder_id,
        path=str(arguments.import_llm2clip.resolve()),
        revision="",
        pooling="unknown",
        dim=archive.dim,
        dtype="unknown",
        settings=f"LLM2CLIP's files, field {arguments.field}",
    )
    num_texts = index.captions(source).num_texts
    with tqdm(archive.batches(), total=len(index.shards), unit=" shards", disable=None) as batches:
        store = write_text_embeddings(index, arguments.name, source, record, batches)
    print(f"imported   {num_texts:,} embeddings of length {store.dim}")
    print(f"left out   {archive.num_unused:,}, whose samples are none of the index's")
    return {
        "name": arguments.name,
        "num_texts": num_texts,
        "dim": store.dim,
        "num_unused": archive.num_unused,
        "fingerprints": {source: store.fingerprint},
    }


def _open_encoder(arguments: Arguments) -> TextEncoder:
    assert arguments.encoder is not None
    name = arguments.device
    if name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = choose_device(name)
    return open_text_encoder(
        arguments.encoder,
        adapter=arguments.adapter,
        pooling=arguments.pooling,
        max_tokens=arguments.max_tokens,
        bidirectional=not arguments.causal,
        device=device,
        dtype=choose_dtype(arguments.precision, device),
    )


def _fingerprints(index: Index, name: str, left: dict[str, int]) -> dict[str, dict[str, str]]:
    """Of the sources that are complete."""
    done = [source for source, count in left.items() if not count]
    return {"fingerprints": {s: open_text_embeddings(index, name, s).fingerprint for s in done}}


if __name__ == "__main__":
    sys.exit(main())
