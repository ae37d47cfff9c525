r"""Rewrite the captions of an index with a local language model, as LaCLIP does.

    python tools/rewrite_captions.py data/cc12m --model models/llama-7b --pairs human.jsonl \
        --out data/rewrites/human.jsonl
    python tools/rewrite_captions.py data/cc12m@part1 --model models/llama-7b --pairs data/coco \
        --out data/rewrites/coco-1.jsonl

The model sees an instruction, three examples drawn for each caption, and the caption, and goes on.
Examples are the columns `input` and `output` of a .jsonl, .tsv, .csv or .parquet, or two captions
of one image where --pairs is an index. One run gives one rewrite a sample; for several, run with
other pairs and give all files to tools/add_captions.py with --repeats all.

Needs transformers (pip install transformers) and a model in a local folder; where vLLM is installed
and there is a GPU, it runs the model (docs/rewriting.md). The output grows by blocks; the same
command goes on after an interruption and gives what an unbroken run gives. A rewrite that is empty,
one word, a copy, or not ended is tried again, then left out and counted.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro

from tessera.pipeline.index.dataset import open_dataset
from tessera.tools.captioning.checkpoint import choose_device, model_identity
from tessera.tools.captioning.engine import Decoding, choose_backend
from tessera.tools.captioning.examples import open_examples
from tessera.tools.captioning.language_model import LanguageModel
from tessera.tools.captioning.output import CaptionFile
from tessera.tools.captioning.program import (
    caption_dataset,
    data_identity,
    environment,
    run_program,
)
from tessera.tools.captioning.prompts import REWRITE_FILE, read_rewrite_prompt
from tessera.tools.captioning.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Rewrite captions with a local language model."""

    index: tyro.conf.Positional[str]
    """INDEX or INDEX@SELECTION; a sample's first caption is rewritten."""
    model: Path
    """Folder of a causal language model, as transformers saves it."""
    pairs: str
    """File of examples (columns input, output), or INDEX or INDEX@SELECTION with several captions
    for each sample."""
    out: Path
    """Where the rewrites go: a .jsonl; a .json of the same name says what made them."""
    prompt: Path = REWRITE_FILE
    """TOML file with instruction and separator."""
    num_examples: int = 3
    """Examples in a prompt."""
    decoding: tyro.conf.OmitArgPrefixes[Decoding] = field(default_factory=Decoding)
    """How tokens are chosen."""
    retries: int = 2
    """Further tries for a rewrite with a fault, with other examples."""
    seed: int = 0
    """Of the draws of examples and tokens."""
    batch_size: int = 64
    """Prompts that the model sees together."""
    block_size: int = 1024
    """Samples stored together; an interruption costs at most this many."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda:1."""
    backend: Literal["auto", "transformers", "vllm"] = "auto"
    """What runs the model; auto takes vLLM where it is installed and the device is the first GPU.
    A run is gone on with by the one that began it."""

    def __post_init__(self) -> None:
        if min(self.num_examples, self.batch_size, self.block_size) < 1 or self.retries < 0:
            raise ValueError(
                "--num-examples, --batch-size and --block-size must be at least 1, --retries 0"
            )


def rewrite(words: list[str]) -> dict[str, Any]:
    """The tool's work; returns what became of the captions."""
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    dataset = open_dataset(arguments.index)
    prompt = read_rewrite_prompt(arguments.prompt)
    examples = open_examples(arguments.pairs, arguments.num_examples)
    device = choose_device(arguments.device)
    backend = choose_backend(arguments.backend, device)
    identity = {
        "tool": "rewrite_captions",
        "data": data_identity(dataset),
        "model": model_identity(arguments.model),
        "prompt": {"file": arguments.prompt.name, **asdict(prompt)},
        "pairs": {
            "name": examples.name,
            "count": len(examples.groups),
            "fingerprint": examples.fingerprint,
        },
        "settings": {
            **asdict(arguments.decoding),
            "backend": backend,
            "num_examples": arguments.num_examples,
            "retries": arguments.retries,
            "seed": arguments.seed,
            "block_size": arguments.block_size,
        },
    }
    model = LanguageModel(
        arguments.model, arguments.decoding, arguments.batch_size, device, backend
    )
    rewriter = Rewriter(
        dataset.index, model, prompt, examples, arguments.num_examples, arguments.seed
    )
    surroundings = environment(device, arguments.batch_size, backend)
    with CaptionFile(
        arguments.out, dataset, identity, surroundings, arguments.block_size
    ) as output:
        return caption_dataset(dataset, rewriter, output, arguments.retries)


if __name__ == "__main__":
    sys.exit(run_program(rewrite))
