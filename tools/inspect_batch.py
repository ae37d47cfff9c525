"""See what the model receives: original, crop, clusters in colour, visible patches, tokens.

    python tools/inspect_batch.py INDEX --step 3 --count 12 --html batch.html --png batch.png
    python tools/inspect_batch.py INDEX --mask.kind random --crop.scale 0.4 1.0 --decoder pil
    python tools/inspect_batch.py INDEX --context-length 16 --text-reduction random

Draws the first samples of one training batch, from INDEX or INDEX@SELECTION, exactly as a run with
these settings would get them: a step says which samples, which windows and which mask. Only a mask
that compares patch embeddings depends on the run's weights: --checkpoint has them. The rows of the
page show the picture as it is stored with its crop window, the crop, the clusters of hidden
patches with their anchors, and what stays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro

from tessera.model.config import clip_config
from tessera.pipeline import LoaderConfig, open_loader
from tessera.pipeline.loader import Loader
from tessera.pipeline.masking import MaskConfig
from tessera.report.batch import Sheet, make_sheet, write_sheet_page, write_sheet_picture
from tessera.training.checkpoint import CheckpointError, load
from tessera.training.run_folder import newest_checkpoint
from tessera.training.session import MASK


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """See what the model receives of one step."""

    index: tyro.conf.Positional[tuple[str, ...]]
    """INDEX or INDEX@SELECTION; several with weights (A=1 B=0.5) as a run has them."""
    step: int = 0
    """Which step's batch, counted from 0."""
    count: int = 12
    """Samples to show, from the batch's first on."""
    model: str = ""
    """Take image, patch and context size from this model, such as ViT-B-16 or tessera-demo."""
    checkpoint: Path | None = None
    """Folder of a run, or of a checkpoint: the mask compares its patch embeddings, as they were
    last handed to it (--mask.embedding-first and -last, --num-steps); without it, pixels only."""
    loader: Annotated[LoaderConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: LoaderConfig(mask=MaskConfig(kind="cluster"))
    )
    """Settings of the run, with the cluster mask unless another is named; a budget mask depends on
    all pairs of the batch."""
    html: Path = Path("batch.html")
    """The page."""
    png: Path | None = None
    """The same as one picture."""

    def __post_init__(self) -> None:
        if not self.index:
            raise ValueError("name an index: INDEX, or INDEX@SELECTION")
        if self.step < 0 or self.count < 1:
            raise ValueError("--step must be at least 0 and --count at least 1")
        if self.checkpoint and not self.loader.mask.uses_embedding:
            raise ValueError(
                "--checkpoint is for masks that compare embeddings: give --mask.embedding-first "
                "and --mask.embedding-last of the run"
            )

    def loader_config(self) -> LoaderConfig:
        """What the loader is opened with.

        Raises:
            ValueError: the model is unknown, or sizes do not fit each other.
        """
        # One batch is not worth the seconds that a trial of the GPU decoder takes.
        device = "cpu" if self.loader.device == "auto" else self.loader.device
        config = replace(self.loader, device=device)
        if not self.model:
            return config
        known = clip_config(self.model)
        return replace(
            config,
            image_size=known.vision.image_size,
            patch_size=known.vision.patch_size,
            context_length=known.text.context_length,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv, failures=(CheckpointError,))


def _run(words: list[str]) -> dict[str, object]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    with open_loader(arguments.index, arguments.loader_config()) as loader:
        if arguments.checkpoint:
            hand_embeddings(loader, arguments.checkpoint)
        sheet = make_sheet(loader, arguments.step, arguments.count)
    write_sheet_page(sheet, arguments.html)
    if arguments.png:
        write_sheet_picture(sheet, arguments.png)
    if arguments.loader.mask.uses_embedding and not arguments.checkpoint:
        print("mask     of pixels alone: the embeddings of a run come with --checkpoint")
    print(f"decoder  {loader.decoder_name}")
    print(f"page     {arguments.html}")
    if arguments.png:
        print(f"picture  {arguments.png}")
    return summary(arguments, sheet)


def hand_embeddings(loader: Loader, place: Path) -> None:
    """Have the mask compare patches as a run's did at its checkpoint.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: it cannot be read.
        ValueError: its mask had no embeddings, or none yet.
    """
    found = load(newest_checkpoint(place))
    weights = found.part(MASK)
    if not weights:
        raise ValueError(f"the checkpoint in {place} holds no patch embeddings for a mask")
    loader.set_patch_embedding(**weights, step=found.state["mask_step"])


def summary(arguments: Arguments, sheet: Sheet) -> dict[str, object]:
    """What was drawn, for a program."""
    return {
        "index": " ".join(arguments.index),
        "step": sheet.step,
        "batch_size": sheet.batch_size,
        "num_shown": len(sheet.rows),
        "keys": [row.item.key for row in sheet.rows],
        "visible_patches": sheet.num_visible,
        "patches": sheet.num_patches,
        "tokens": sheet.num_tokens,
        "bytes_per_pair": sheet.bytes_per_pair,
        "html": str(arguments.html),
        "png": str(arguments.png) if arguments.png else None,
    }


if __name__ == "__main__":
    sys.exit(main())
