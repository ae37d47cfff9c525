r"""Caption the pictures of an index anew and join that with their alt texts, as VeCLIP does.

    python tools/recaption.py data/cc12m --vision-model models/llava-1.5-7b \
        --language-model models/vicuna-7b --out data/recaptions/vecap.jsonl

A local vision-language model describes each picture; a local language model makes one sentence of
the description and the alt text. Both prompts are in a TOML file (--prompts). A refusal of either
model is not stored: such a sample keeps its alt text, and is counted.

Needs transformers (pip install transformers) and both models in local folders. The output grows by
blocks; the same command resumes after an interruption and gives what an unbroken run gives.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro

from tessera.pipeline.index.dataset import open_dataset
from tessera.tools.captioning.checkpoint import choose_device, model_identity
from tessera.tools.captioning.engine import Decoding
from tessera.tools.captioning.language_model import LanguageModel
from tessera.tools.captioning.output import CaptionFile
from tessera.tools.captioning.program import (
    caption_dataset,
    data_identity,
    environment,
    run_program,
)
from tessera.tools.captioning.prompts import RECAPTION_FILE, read_recaption_prompts
from tessera.tools.captioning.recaptioner import Recaptioner
from tessera.tools.captioning.vision_language_model import VisionLanguageModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Caption pictures with local models."""

    index: tyro.conf.Positional[str]
    """INDEX or INDEX@SELECTION; a sample's first caption is its alt text."""
    vision_model: Path
    """Folder of a vision-language model, as transformers saves it."""
    language_model: Path
    """Folder of a causal language model, as transformers saves it."""
    out: Path
    """Where the captions go: a .jsonl; a .json of the same name says what made them."""
    prompts: Path = RECAPTION_FILE
    """TOML file with what the models are asked and how refusals begin."""
    decoding: tyro.conf.OmitArgPrefixes[Decoding] = field(default_factory=Decoding)
    """How tokens are chosen in fusion; descriptions take the likeliest."""
    description_tokens: int = 100
    """Most tokens of a description; a longer one is cut."""
    retries: int = 2
    """Further tries for a caption with a fault."""
    seed: int = 0
    """Of the draws of tokens."""
    batch_size: int = 32
    """Pictures, and prompts, that a model sees together."""
    block_size: int = 1024
    """Samples stored together; an interruption costs at most this many."""
    threads: int = 0
    """Read and decode pictures; 0 takes one for each core."""
    device: str = "auto"
    """Of both models: auto (a GPU where there is one), cpu, cuda:1."""

    def __post_init__(self) -> None:
        if min(self.description_tokens, self.batch_size, self.block_size) < 1:
            raise ValueError(
                "--description-tokens, --batch-size and --block-size must be at least 1"
            )
        if min(self.retries, self.threads) < 0:
            raise ValueError("--retries and --threads must be at least 0")


def recaption(words: list[str]) -> dict[str, Any]:
    """The tool's work; returns what became of the captions."""
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    dataset = open_dataset(arguments.index)
    dataset.index.check_shards()
    prompts = read_recaption_prompts(arguments.prompts)
    device = choose_device(arguments.device)
    identity = {
        "tool": "recaption",
        "data": data_identity(dataset),
        "vision_model": model_identity(arguments.vision_model),
        "language_model": model_identity(arguments.language_model),
        "prompts": {"file": arguments.prompts.name, **asdict(prompts)},
        "settings": {
            **asdict(arguments.decoding),
            "description_tokens": arguments.description_tokens,
            "retries": arguments.retries,
            "seed": arguments.seed,
            "block_size": arguments.block_size,
        },
    }
    pictures = VisionLanguageModel(
        arguments.vision_model, prompts.describe, arguments.description_tokens, device
    )
    texts = LanguageModel(
        arguments.language_model, arguments.decoding, arguments.batch_size, device
    )
    surroundings = environment(device, arguments.batch_size)
    with (
        CaptionFile(arguments.out, dataset, identity, surroundings, arguments.block_size) as output,
        Recaptioner(
            dataset.index,
            pictures,
            texts,
            prompts,
            batch_size=arguments.batch_size,
            num_threads=arguments.threads or len(os.sched_getaffinity(0)),
            seed=arguments.seed,
        ) as recaptioner,
    ):
        return caption_dataset(dataset, recaptioner, output, arguments.retries)


if __name__ == "__main__":
    sys.exit(run_program(recaption))
