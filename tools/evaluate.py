"""Evaluate a model: zero-shot, retrieval, linear probe, SugarCrepe, Winoground.

    python tools/evaluate.py runs/demo --zero-shot data/demo/index/heldout --out demo.json
    python tools/evaluate.py ViT-B-32-quickgelu --pretrained openai --zero-shot imagenet/val \
        --retrieval data/flickr30k/test --captions json:captions
    python tools/evaluate.py CHECKPOINT --zero-shot photos --html page.html --before demo.json
    python tools/evaluate.py CHECKPOINT --linear-probe TRAIN TEST --few-shot 1 4 16
    python tools/evaluate.py CHECKPOINT --sugarcrepe sugar-crepe/data --sugarcrepe-images val2017
    torchrun --nproc-per-node 8 tools/evaluate.py CHECKPOINT --zero-shot imagenet/val

CHECKPOINT is a run folder, a checkpoint folder (ours, open_clip's `local-dir:`, or of a Hugging
Face CLIPModel), a weights file with --model, or open_clip's name of a model, with --pretrained or
with random weights. Data are indexes, INDEX@SELECTION, folders of tar shards, which are indexed
first, or folders of class folders. docs/evaluation.md defines every score.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro

from tessera.evaluation.suite import Suite
from tessera.evaluation.views import ViewConfig, Views
from tessera.pipeline.masking.config import MaskConfig

if TYPE_CHECKING:  # --help must not wait for torch: each function imports what it works with
    from tessera.evaluation.suite import Outcome
    from tessera.model import Clip
    from tessera.model.config import ClipConfig
    from tessera.training.distributed import Ranks

_TIMEOUT_S = 600.0
"""Seconds that a process waits for the others to start."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Suite):
    """Evaluate a model."""

    checkpoint: tyro.conf.Positional[str]
    """Run folder, checkpoint folder, weights file, or open_clip's name of a model."""
    model: str = ""
    """Of a weights file: the architecture, an open_clip name."""
    pretrained: str = ""
    """Of an open_clip name: a tag of published weights (cached or downloaded), or a weights file;
    empty takes random weights."""
    seed: int = 0
    """Of random weights, and of the masks."""
    text_encoder: str = ""
    """Of a model that reads a language model's embeddings: the folder of what embeds texts that are
    stored nowhere, or MODEL+LORA."""
    ema: bool = False
    """Take the average of the weights that the run kept (`optim.ema_samples`)."""
    captions: str = "txt"
    """Captions of shard folders for retrieval: `txt`; `lines`, as CLIP_benchmark stores several; or
    `json:FIELD` with a string or a list of strings. Other measurements need none."""
    index_dir: Path | None = None
    """Folder for the indexes of shard folders, kept there; left out, they are made in a temporary
    folder of this machine."""
    views: Views = "full"
    """What is shown of each picture: all of it, what --mask leaves, or complementary random parts
    of it whose features are averaged."""
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(kind="none"))
    """For --views masked and complementary."""
    batch_size: int = 128
    """Pictures or texts encoded at once."""
    num_threads: int = 0
    """Threads of each process that decode; 0 shares out the cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU if there is one."""
    out: Path | None = None
    """JSON file for the results."""
    html: Path | None = None
    """File for a page of the results, with a table of the classes."""
    before: Path | None = None
    """What an earlier call wrote to --out, such as of the weights before fine-tuning: the page
    shows the change."""

    def __post_init__(self) -> None:
        """Raise ValueError where something does not make sense."""
        super().__post_init__()
        if self.batch_size < 1 or self.num_threads < 0:
            raise ValueError("--batch-size must be at least 1 and --num-threads at least 0")
        if not any(getattr(self, each.name) for each in fields(Suite) if each.default == ()):
            raise ValueError("name some data: --zero-shot, --retrieval, --linear-probe, ...")
        if self.before and not self.html:
            raise ValueError("--before is shown on the page: give --html as well")
        if self.before and not self.before.is_file():
            raise FileNotFoundError(f"there is no file {self.before}")
        _ = self.view_config

    @property
    def view_config(self) -> ViewConfig:
        """What is shown of each picture."""
        return ViewConfig(views=self.views, mask=self.mask, seed=self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model with weights, and what to call both."""

    clip: Clip
    """In evaluation mode."""
    name: str
    """Of the architecture."""
    pretrained: str
    """Where the weights come from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    return program.run(_run, argv, stopped="stopped; nothing was written")


def _run(words: list[str]) -> dict[str, Any] | None:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    from tessera.training.distributed import RankError, join_ranks

    try:
        with join_ranks(_TIMEOUT_S) as ranks:
            result = run(arguments, ranks)
    except RankError as error:
        raise RuntimeError(str(error)) from error
    return result if ranks.is_main else None


def run(arguments: Arguments, ranks: Ranks) -> dict[str, Any]:
    """Load, evaluate, print and write; every process must call it.

    Returns:
        What is written to --out; only rank 0's holds results.
    """
    from tessera.evaluation.records import RETRIEVAL_DEFINITION, records
    from tessera.evaluation.scores import NUM_BAD, renamed
    from tessera.pipeline.index import ScanOptions
    from tessera.training.environment import machine

    ScanOptions(captions=arguments.captions)  # refuses what it does not know
    device = ranks.device(arguments.device)
    model = load_model(arguments)
    with ExitStack() as stack:
        folder = arguments.index_dir
        if folder is None and ranks.is_main:
            temporary = tempfile.TemporaryDirectory(prefix="tessera-")
            folder = Path(stack.enter_context(temporary))
        # All processes of a machine see the folder; several machines need --index-dir.
        folder = Path(ranks.on_main(lambda: str(folder)))
        indexed = ranks.on_main(lambda: index_shards(arguments, folder))
        suite = with_indexes(arguments, indexed)
        doubts = suite.check()
        if ranks.is_main:
            warn(doubts, indexed)
        outcome = _measure(arguments, ranks, model.clip.to(device), suite)
        rejected = rejected_samples(suite, indexed)
    names = {index: place for place, index in indexed.items()}
    scores = renamed(outcome.scores, names)
    result = {
        "checkpoint": arguments.checkpoint,
        "views": arguments.views,
        "mask": {"kind": arguments.mask.kind, "mask_ratio": arguments.mask.mask_ratio},
        "definitions": RETRIEVAL_DEFINITION,
        "num_ranks": ranks.world_size,
        "results": records(scores, model.name, model.pretrained),
        "per_class": {names.get(p, p): rows for p, rows in outcome.per_class.items()},
        "bad_images": {row.dataset: int(row.value) for row in scores if row.metric == NUM_BAD},
        "rejected_samples": rejected,
        "environment": machine(device),
    }
    if ranks.is_main:
        _show(arguments, replace(outcome, scores=scores), model, result)
    return result


def _measure(arguments: Arguments, ranks: Ranks, clip: Clip, suite: Suite) -> Outcome:
    from tessera.evaluation.encoder import Encoder
    from tessera.evaluation.suite import evaluate
    from tessera.evaluation.text_features import check_text_features, open_text_features
    from tessera.tools.progress import Progress
    from tessera.training.environment import num_cores, processes_here

    if clip.config.adapter:
        check_text_features(clip.config.adapter, suite, arguments.text_encoder)
    total = -(-suite.num_to_encode() // ranks.world_size)
    silent = not ranks.is_main
    with Progress("encoding", "pictures and texts", total, silent=silent) as progress:
        encoder = Encoder(
            clip=clip,
            batch_size=arguments.batch_size,
            num_threads=arguments.num_threads or max(1, num_cores() // processes_here()),
            views=arguments.view_config,
            ranks=ranks,
            texts=open_text_features(clip, arguments.text_encoder),
            progress=progress,
        )
        return evaluate(encoder, suite)


def _show(arguments: Arguments, outcome: Outcome, model: Model, result: dict[str, Any]) -> None:
    """Print the results, and write what was asked for."""
    from tessera.evaluation.records import lines, table
    from tessera.pipeline.durable import write_text
    from tessera.report.evaluation import write_evaluation_page

    rejected = _lines_of_rejected(result["rejected_samples"])
    print("\n".join([*lines(outcome.scores), *rejected, "", table(result["results"])]))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    if arguments.html:
        before = json.loads(arguments.before.read_text("utf-8")) if arguments.before else None
        write_evaluation_page(
            arguments.html,
            model=f"{model.name}, {model.pretrained}",
            scores=outcome.scores,
            confusions=outcome.confusions,
            result=result,
            before=before,
        )
        print(f"page     {arguments.html}")


def load_model(arguments: Arguments) -> Model:
    """The model that the arguments name.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the architecture is not known, or does not fit the weights.
    """
    import torch

    from tessera.model import build_clip
    from tessera.model.config import clip_config
    from tessera.model.own_tokens import own_tokens
    from tessera.model.pretrained import read_config, require_usual_resize
    from tessera.training.run_folder import named, newest_checkpoint
    from tessera.training.session import EMA

    place = Path(arguments.checkpoint)
    if place.is_dir():
        place = newest_checkpoint(place)
        require_usual_resize(place)
        weights = place / f"{EMA}.safetensors" if arguments.ema else place
        return _filled(named(read_config(place), place), str(weights))
    if arguments.ema:
        raise ValueError("--ema takes the average that a checkpoint folder of a run holds")
    if place.is_file():
        if not arguments.model:
            raise ValueError(f"{place} is a weights file: name its architecture with --model")
        return _filled(clip_config(arguments.model), str(place))
    try:
        config = clip_config(arguments.checkpoint)
    except ValueError as error:
        raise FileNotFoundError(
            f"{place} is neither a file nor a folder nor a model that can be built: {error}"
        ) from error
    if arguments.pretrained:
        return _filled(as_published(config, arguments.pretrained), arguments.pretrained)
    torch.manual_seed(arguments.seed)
    own_tokens(config.text)
    return Model(
        clip=build_clip(config).eval(),
        name=config.name,
        pretrained=f"random weights, seed {arguments.seed}",
    )


def index_shards(arguments: Arguments, folder: Path) -> dict[str, str]:
    """Index the shard folders among the data; where each one's index lies.

    An index that an earlier call left in `folder` is brought up to date, which reads only shards
    that have changed. Captions are read for retrieval alone: CLIP_benchmark's labelled sets have
    none.
    """
    from tessera.evaluation.labelled import is_index
    from tessera.pipeline.index import ScanOptions, build_index
    from tessera.pipeline.storage import list_shards

    places = (*arguments.zero_shot, *arguments.retrieval, *arguments.linear_probe)
    found: dict[str, str] = {}
    for place in dict.fromkeys(places):
        if is_index(place) or not Path(place).is_dir() or not any(Path(place).glob("*.tar")):
            continue
        path = Path(place).resolve()
        index = folder / f"{path.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
        captions = arguments.captions if place in arguments.retrieval else "class"
        report = build_index(list_shards(place), index, options=ScanOptions(captions=captions))
        print(f"indexed {place}: {json.dumps(report.summary())}", file=sys.stderr)
        if captions != "class":
            print("".join(f"{place}: {hint}\n" for hint in report.hints), end="", file=sys.stderr)
        found[place] = str(index)
    return found


def with_indexes(arguments: Arguments, indexed: dict[str, str]) -> Suite:
    """What is to be measured, with indexes in the place of shard folders."""
    suite = Suite(**{each.name: getattr(arguments, each.name) for each in fields(Suite)})
    names = ("zero_shot", "retrieval", "linear_probe")
    return replace(suite, **{n: tuple(indexed.get(p, p) for p in getattr(suite, n)) for n in names})


def warn(doubts: Sequence[str], indexed: Mapping[str, str]) -> None:
    """Say on stderr what was probably not meant, by the names that a person gave."""
    for line in doubts:
        for place, index in indexed.items():
            line = line.replace(index, place)
        print(f"warning: {line}", file=sys.stderr)


def rejected_samples(suite: Suite, indexed: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Samples that the indexes left out when they were made, by data set and reason.

    Args:
        suite: of indexes and folders of pictures.
        indexed: the index of each shard folder.
    """
    from tessera.evaluation.labelled import is_index
    from tessera.pipeline.index.dataset import open_dataset

    names = {index: place for place, index in indexed.items()}
    places = (*suite.zero_shot, *suite.retrieval, *suite.linear_probe)
    found = {
        names.get(place, place): open_dataset(place).index.rejections
        for place in places
        if is_index(place)
    }
    return {place: reasons for place, reasons in found.items() if reasons}


def _lines_of_rejected(rejected: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        f"{place}: {sum(reasons.values())} samples were left out when it was indexed "
        f"({', '.join(f'{count} {reason}' for reason, count in reasons.items())})"
        for place, reasons in rejected.items()
    ]


def _filled(config: ClipConfig, weights: str) -> Model:
    from tessera.model import build_clip
    from tessera.model.own_tokens import own_tokens
    from tessera.model.pretrained import load_pretrained

    own_tokens(config.text)
    clip = build_clip(config).eval()
    for note in load_pretrained(clip, weights):
        print(f"{weights}: {note}", file=sys.stderr)
    return Model(clip=clip, name=config.name, pretrained=weights)


def as_published(config: ClipConfig, tag: str) -> ClipConfig:
    """A model with the pixel statistics of published weights, which may differ from the usual.

    Args:
        config: of open_clip's name.
        tag: of published weights; any other text changes nothing.

    Raises:
        ValueError: open_clip evaluates these weights with another resize.
    """
    import open_clip

    from tessera.model.open_clip_config import pixel_statistics

    published = open_clip.get_pretrained_cfg(config.name, tag)
    usual = {"interpolation": "bicubic", "resize_mode": "shortest"}
    other = {
        name: published[name] for name in usual if published.get(name, usual[name]) != usual[name]
    }
    if other:
        raise ValueError(f"open_clip evaluates {tag!r} with {other}, which is not supported")
    if not published:
        return config
    mean, std = pixel_statistics(config.name, tag)
    return replace(config, vision=replace(config.vision, pixel_mean=mean, pixel_std=std))


if __name__ == "__main__":
    sys.exit(main())
