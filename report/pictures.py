"""Pictures of what a mask left of some images, as templates draw them.

A crop is embedded once. The other panels are the same picture with coloured or blank cells drawn
over it, so they cost a few hundred bytes, stay sharp at any size and follow the page's colours.

Shape legend: S crop side in pixels, N patches of an image (rows * cols), A anchors of an image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tessera.pipeline.decoding.picture import PICTURE_FORMATS, on_white
from tessera.report.page import Picture

NUM_COLOURS = 12
_FORMATS = (*PICTURE_FORMATS, "BMP", "TIFF")
"""Pillow's names. It knows others, for one of which (EPS) it starts a program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryItem:
    """One training image and what the mask left of it."""

    key: str
    """Key of the sample in its shard."""
    caption: str
    """Caption as drawn for this sample."""
    crop: Picture
    """[S, S, 3] uint8, the crop before masking."""
    visible: NDArray[np.bool_]
    """[N] True where the model saw the patch, row-major."""
    anchors: NDArray[np.integer[Any]]
    """[A] patch numbers of the anchors; empty when the mask has none."""
    cluster: NDArray[np.integer[Any]]
    """[N] number of the anchor whose cluster the patch is in, -1 where it is in none."""
    grid: tuple[int, int]
    """(rows, cols) of the patch grid."""
    tokens: Sequence[str] = ()
    """Text tokens that the text tower saw, as strings."""

    def __post_init__(self) -> None:
        """Raise ValueError when picture, grid and masks do not belong together."""
        check_picture(self.crop, f"gallery item {self.key!r}")
        rows, cols = self.grid
        if not self.visible.shape == self.cluster.shape == (rows * cols,):
            raise ValueError(
                f"gallery item {self.key!r}: a grid of {rows} x {cols} has {rows * cols} patches, "
                f"but visible is {list(self.visible.shape)} and cluster {list(self.cluster.shape)}"
            )
        fits = self.cluster.min(initial=-1) >= -1 and self.cluster.max(initial=-1) < len(
            self.anchors
        )
        if not fits or not all(0 <= anchor < rows * cols for anchor in self.anchors):
            raise ValueError(
                f"gallery item {self.key!r}: anchors must be patch numbers below {rows * cols} and "
                f"cluster numbers -1 .. {len(self.anchors) - 1}"
            )

    @property
    def num_visible(self) -> int:
        """Patches that the model saw."""
        return int(self.visible.sum())

    @property
    def hidden_cells(self) -> str:
        """SVG path over the hidden patches, in units of a patch."""
        return cells_path(~self.visible, self.grid)

    @property
    def cluster_cells(self) -> list[tuple[str, int, int]]:
        """(SVG path, number of its colour, patches) of each cluster."""
        masks = [self.cluster == number for number in range(len(self.anchors))]
        return [
            (cells_path(mask, self.grid), number % NUM_COLOURS, int(mask.sum()))
            for number, mask in enumerate(masks)
        ]

    @property
    def anchor_cells(self) -> str:
        """SVG path around the anchors."""
        cols = self.grid[1]
        return "".join(f"M{cell % cols} {cell // cols}h1v1h-1z" for cell in map(int, self.anchors))


def check_picture(picture: Picture, what: str) -> None:
    """Raise ValueError where it is no uint8 [H, W, 3]."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"{what}: pictures are uint8 [H, W, 3], this one is {picture.dtype} "
            f"{list(picture.shape)}; undo the normalisation before handing it to the report"
        )


def cells_path(chosen: NDArray[np.bool_], grid: tuple[int, int]) -> str:
    """Return an SVG path over the chosen cells [N] of a grid, a rectangle for each run in a row."""
    parts: list[str] = []
    for row, line in enumerate(chosen.reshape(grid)):
        steps = np.diff(np.concatenate([[0], line.astype(np.int8), [0]]))
        for first, end in zip(np.flatnonzero(steps > 0), np.flatnonzero(steps < 0), strict=True):
            parts.append(f"M{first} {row}h{end - first}v1h-{end - first}z")
    return "".join(parts)


def thumbnail(data: bytes, side: int = 240) -> Picture:
    """Return a picture upright and small.

    Args:
        data: image file.
        side: its longer side at most, in pixels.

    Returns:
        [H, W, 3] uint8.

    Raises:
        OSError: it cannot be decoded.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.draft("RGB", (2 * side, 2 * side))
        image = on_white(ImageOps.exif_transpose(image))
        image.thumbnail((side, side))
    except UnidentifiedImageError as error:
        raise OSError("it is no picture of a known format") from error
    except OSError:
        raise
    except Exception as error:  # Pillow raises many kinds, of a damaged EXIF block SyntaxError
        raise OSError(str(error) or type(error).__name__) from error
    return np.asarray(image)
