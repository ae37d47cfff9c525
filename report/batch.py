"""What the model receives of one step, as a page and as one picture.

Legend: N patches of an image (rows * cols), S side of a crop in pixels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tessera.pipeline.counter_random import Purpose, uniforms
from tessera.pipeline.crops import DRAWS_PER_WINDOW, draw_windows
from tessera.pipeline.decoding.picture import Picture as PictureFile
from tessera.pipeline.reader import ShardReader
from tessera.report.gallery import gallery_items
from tessera.report.numbers import count, percent, shorten
from tessera.report.page import Headline, Picture, now, write
from tessera.report.pictures import GalleryItem

if TYPE_CHECKING:  # whoever has a loader has waited for torch already
    from tessera.pipeline.loader import Loader
    from tessera.pipeline.stages import Preview

_SIDE, _GAP, _TEXT = 224, 14, 330
_PAPER, _INK, _QUIET, _BLANK = (255, 255, 255), (32, 32, 32), (110, 110, 110), (232, 234, 236)
_TINT = 0.58
_COLOURS = (
    (230, 85, 13), (31, 120, 209), (242, 197, 0), (142, 68, 201), (31, 163, 90), (232, 67, 147),
    (0, 181, 200), (138, 90, 43), (168, 217, 58), (59, 59, 214), (255, 156, 138), (11, 110, 99),
)  # fmt: skip
"""Those of the page's style sheet, in its order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetRow:
    """One sample, from its file to its tokens."""

    item: GalleryItem
    """Crop, clusters, visible patches, caption and tokens."""
    original: Picture
    """[H, W, 3] uint8, the stored picture upright, shrunk."""
    window: tuple[float, float, float, float]
    """(left, top, right, bottom) of the crop window as shares of the picture, 0 to 1."""
    size: tuple[int, int]
    """(width, height) of the stored picture, in pixels."""

    @property
    def frame(self) -> str:
        """SVG path around the window, in pixels of `original`."""
        left, top, right, bottom = _scaled(self.window, *self.original.shape[1::-1])
        return f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}z"

    @property
    def square(self) -> str:
        """SVG view of `original` in the middle of a square."""
        height, width = self.original.shape[:2]
        side = max(height, width)
        return f"{(width - side) / 2} {(height - side) / 2} {side} {side}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """Some samples of one step."""

    step: int
    """Which step."""
    batch_size: int
    """Pairs in its batch."""
    settings: str
    """Sizes, crop and mask in words."""
    num_visible: int
    """Visible patches of the whole batch."""
    num_patches: int
    """Patches of the whole batch before the mask."""
    num_tokens: int
    """Text tokens of the whole batch."""
    bytes_per_pair: float
    """What crosses to the model's device."""
    rows: Sequence[SheetRow]
    """The first samples."""


def make_sheet(loader: Loader, step: int, num_rows: int) -> Sheet:
    """Make one step and keep what a person would want to see of it.

    Args:
        loader: a training loader; its place is not moved.
        step: which step.
        num_rows: samples to show, from the batch's first on.
    """
    shown = loader.preview(step)
    batch = loader.assemble(step)
    items = gallery_items(loader, shown, num_rows)
    windows = _windows(loader, shown)
    reader = ShardReader(loader.index, 1)
    files = reader.read(shown.visits.sample_ids[: len(items)])
    reader.close()
    rows = [
        _row(item, data, window)
        for item, data, window in zip(items, files, windows, strict=False)
        if isinstance(data, bytes)
    ]
    config = loader.config
    ratio = "" if config.mask.kind == "none" else f" {config.mask.mask_ratio:g}"
    return Sheet(
        step=step,
        batch_size=batch.num_samples,
        settings=f"{config.image_size} px, patch {config.patch_size}, crop scale "
        f"{config.crop.scale[0]:g} to {config.crop.scale[1]:g}, {config.mask.kind} mask{ratio}",
        num_visible=len(batch.patches),
        num_patches=shown.visible.numel(),
        num_tokens=len(batch.tokens),
        bytes_per_pair=batch.num_bytes / batch.num_samples,
        rows=rows,
    )


def write_sheet_page(sheet: Sheet, path: Path) -> None:
    """Write the page.

    Args:
        sheet: from `make_sheet`.
        path: the HTML file.
    """
    share = sheet.num_visible / sheet.num_patches
    write(
        path,
        "batch",
        title=f"Batch of step {sheet.step}",
        created=now(),
        sheet=sheet,
        headlines=[
            Headline(percent(share), "of the patches are visible"),
            Headline(f"{sheet.num_visible / sheet.batch_size:.1f}", "visible patches a picture"),
            Headline(f"{sheet.num_tokens / sheet.batch_size:.1f}", "text tokens a picture"),
            Headline(count(sheet.bytes_per_pair), "bytes a pair to the model"),
        ],
    )


def write_sheet_picture(sheet: Sheet, path: Path) -> None:
    """Write the samples as one picture, a row each.

    Args:
        sheet: from `make_sheet`.
        path: the PNG file.
    """
    width = 4 * (_SIDE + _GAP) + _TEXT + _GAP
    height = 2 * _GAP + 24 + len(sheet.rows) * (_SIDE + _GAP)
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    title = f"step {sheet.step}: {sheet.num_visible:,} of {sheet.num_patches:,} patches visible; "
    draw.text((_GAP, _GAP), title + sheet.settings, _INK, font)
    for number, row in enumerate(sheet.rows):
        top = 2 * _GAP + 24 + number * (_SIDE + _GAP)
        panels = (
            _original_panel(row),
            Image.fromarray(row.item.crop),
            _cluster_picture(row.item),
            _visible_picture(row.item),
        )
        for place, panel in enumerate(panels):
            fitted = ImageOps.contain(panel, (_SIDE, _SIDE), Image.Resampling.LANCZOS)
            picture.paste(fitted, (_GAP + place * (_SIDE + _GAP), top))
        left = _GAP + 4 * (_SIDE + _GAP)
        caption = textwrap.wrap(shorten(row.item.caption, 240) or "(no caption)", 44)
        tokens = textwrap.wrap(shorten(_without_word_ends(row.item.tokens), 300), 52)
        seen = f"{int(row.item.visible.sum())} of {len(row.item.visible)} patches"
        draw.multiline_text((left, top), "\n".join(caption), _INK, font)
        under = top + 19 * len(caption) + 8
        lines = [seen, f"{len(row.item.tokens)} tokens:", *tokens, "", row.item.key]
        draw.multiline_text((left, under), "\n".join(lines), _QUIET, small)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _without_word_ends(tokens: Sequence[str]) -> str:
    """Tokens one after the other, a space between words and a middle dot within them."""
    return "".join(
        f"{token.removesuffix('</w>')} " if _ends_a_word(token) else f"{token}\N{MIDDLE DOT}"
        for token in tokens
    )


def _ends_a_word(token: str) -> bool:
    return token.endswith("</w>") or (token.startswith("<") and token.endswith(">"))


def _windows(loader: Loader, shown: Preview) -> NDArray[np.int32]:
    """The crop windows of a previewed training step, drawn again as its plan drew them."""
    ids, index = shown.visits.sample_ids, loader.index
    draws = uniforms(loader.config.seed, shown.visits.passes, ids, Purpose.CROP, DRAWS_PER_WINDOW)
    return draw_windows(index.width[ids], index.height[ids], draws, loader.config.crop)


def _row(item: GalleryItem, data: bytes, window: NDArray[np.int32]) -> SheetRow:
    image = PictureFile(data).pixels()
    width, height = image.size
    y, x, window_h, window_w = map(int, window)
    image.thumbnail((2 * _SIDE, 2 * _SIDE))
    return SheetRow(
        item=item,
        original=np.asarray(image),
        window=(x / width, y / height, (x + window_w) / width, (y + window_h) / height),
        size=(width, height),
    )


def _original_panel(row: SheetRow) -> Image.Image:
    picture = Image.fromarray(row.original)
    draw = ImageDraw.Draw(picture)
    box = _scaled(row.window, *picture.size)
    box = (box[0], box[1], box[2] - 1, box[3] - 1)
    draw.rectangle(box, outline=(0, 0, 0), width=5)
    draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=_PAPER, width=2)
    return picture


def _scaled(
    window: tuple[float, float, float, float], width: int, height: int
) -> tuple[float, float, float, float]:
    left, top, right, bottom = window
    return left * width, top * height, right * width, bottom * height


def _cluster_picture(item: GalleryItem) -> Image.Image:
    grey = np.repeat(np.asarray(Image.fromarray(item.crop).convert("L"))[:, :, None], 3, axis=2)
    pixels = grey.astype(np.float32)
    clusters = _spread_over_pixels(item.cluster, item)
    for number in range(len(item.anchors)):
        colour = np.array(_COLOURS[number % len(_COLOURS)], dtype=np.float32)
        chosen = clusters == number
        pixels[chosen] = (1 - _TINT) * pixels[chosen] + _TINT * colour
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    side = item.crop.shape[0] // item.grid[0]
    for anchor in map(int, item.anchors):
        y, x = anchor // item.grid[1] * side, anchor % item.grid[1] * side
        draw.rectangle((x, y, x + side - 1, y + side - 1), outline=_PAPER, width=2)
    return picture


def _visible_picture(item: GalleryItem) -> Image.Image:
    pixels = item.crop.copy()
    pixels[~_spread_over_pixels(item.visible, item)] = _BLANK
    return Image.fromarray(pixels)


def _spread_over_pixels(values: NDArray, item: GalleryItem) -> NDArray:
    """[N] values of patches to [S, S] of pixels."""
    side = item.crop.shape[0] // item.grid[0]
    return values.reshape(item.grid).repeat(side, axis=0).repeat(side, axis=1)
