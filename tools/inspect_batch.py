"""See what the model receives: original, crop, clusters in colour, visible patches, tokens.

    python tools/inspect_batch.py INDEX --step 3 --count 12 --html batch.html --png batch.png
    python tools/inspect_batch.py INDEX --mask.kind random --crop.scale 0.4 1.0

Draws the first samples of one training batch, from INDEX or INDEX@SELECTION, exactly as a run with
these settings would get them: a step says which samples, which windows and which mask. The rows of
the page show the picture as it is stored with its crop window, the crop, the clusters of hidden
patches with their anchors, and what stays. Prints one JSON line last. Exit status: 0 done, 2 wrong
use, 1 failed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from evaluation.batch_sheet import Sheet, make_sheet, write_sheet_page, write_sheet_picture
from model.config import clip_config
from pipeline import LoaderConfig, open_loader
from pipeline.augment import AugmentConfig
from pipeline.crops import CropConfig
from pipeline.masking import MaskConfig


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """See what the model receives of one step."""

    index: tyro.conf.Positional[str]
    """INDEX or INDEX@SELECTION."""
    step: int = 0
    """Which step's batch, counted from 0."""
    count: int = 12
    """Samples to show, from the batch's first on."""
    model: str = ""
    """Take image, patch and context size from this model, such as ViT-B-16 or tessera-demo."""
    image_size: int = 224
    """Side of the crop, in pixels; not used with --model."""
    patch_size: int = 16
    """Side of a patch, in pixels; not used with --model."""
    context_length: int = 77
    """Most text tokens of a caption; not used with --model."""
    batch_size: int = 256
    """Pairs in the batch, at most all samples. A budget mask depends on all of them."""
    seed: int = 0
    """Of the run."""
    captions: tuple[str, ...] = ("caption",)
    """Caption sources that are drawn from, `NAME` or `NAME=WEIGHT`."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random resized crop."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which patches are hidden."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Flips and colour changes."""
    order: Literal["global", "window"] = "global"
    """Of the run: it decides which samples a step has."""
    window_shards: int = 16
    """window: shards that are mixed with each other."""
    html: Path = Path("batch.html")
    """The page."""
    png: Path | None = None
    """The same as one picture."""

    def __post_init__(self) -> None:
        if self.step < 0 or self.count < 1:
            raise ValueError("--step must be at least 0 and --count at least 1")

    def loader_config(self) -> LoaderConfig:
        """What the loader is opened with.

        Raises:
            ValueError: the model is unknown, or sizes do not fit each other.
        """
        image_size, patch_size = self.image_size, self.patch_size
        context_length = self.context_length
        if self.model:
            known = clip_config(self.model)
            image_size, patch_size = known.vision.image_size, known.vision.patch_size
            context_length = known.text.context_length
        return LoaderConfig(
            image_size=image_size,
            patch_size=patch_size,
            context_length=context_length,
            batch_size=self.batch_size,
            seed=self.seed,
            captions=self.captions,
            crop=self.crop,
            mask=self.mask,
            augment=self.augment,
            order=self.order,
            window_shards=self.window_shards,
        )


def main() -> int:
    """Run the tool; returns its exit status."""
    try:
        arguments = tyro.cli(Arguments, description=__doc__)
        with open_loader(arguments.index, arguments.loader_config()) as loader:
            sheet = make_sheet(loader, arguments.step, arguments.count)
        write_sheet_page(sheet, arguments.html)
        if arguments.png:
            write_sheet_picture(sheet, arguments.png)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(f"page     {arguments.html}")
    if arguments.png:
        print(f"picture  {arguments.png}")
    print(json.dumps(summary(arguments, sheet)))
    return 0


def summary(arguments: Arguments, sheet: Sheet) -> dict[str, object]:
    """What was drawn, for a program."""
    return {
        "index": arguments.index,
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
