"""Pictures inside the page: arrays as data addresses, and the panels that show what a mask left.

A crop is embedded once. The other panels are the same picture with coloured or blank cells drawn
over it, so they cost a few hundred bytes, stay sharp at any size and follow the page's colours.

Shape legend: N patches of an image (rows * cols), A its anchors.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tessera.evaluation.page.markup import Markup, tag
from tessera.evaluation.report.data import GalleryItem, Picture

_LARGEST = 320
_LOSSLESS_BELOW = 96
_NUM_COLOURS = 12


def data_uri(picture: Picture, largest: int = _LARGEST) -> str:
    """Return a picture [H, W, 3] uint8 as a data address, its longer side at most `largest` pixels.

    Tiny pictures are PNG, since they are shown enlarged and JPEG's blocks would show.
    """
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(image.size) <= _LOSSLESS_BELOW:
        kind = "png"
        image.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        # Not optimize=True: Pillow then needs the whole file in a buffer, too small for noise.
        image.save(buffer, "JPEG", quality=84, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def picture_tag(picture: Picture, description: str, largest: int = 224) -> Markup:
    """Return an <img> of a picture [H, W, 3] uint8."""
    return tag("img", src=data_uri(picture, largest), alt=description)


def crop_panel(item: GalleryItem, name: str) -> Markup:
    """Return the crop itself; the other panels refer to it by `name`."""
    image = tag(
        "image",
        id=name,
        href=data_uri(item.crop),
        width=item.grid[1],
        height=item.grid[0],
        preserveAspectRatio="none",
    )
    return _panel(item, "the crop", image)


def cluster_panel(item: GalleryItem, name: str) -> Markup:
    """Return the crop in grey with every cluster in a colour of its own and its anchor outlined."""
    tints = [
        tag(
            "path",
            tag("title", f"cluster {number + 1}: {(item.cluster == number).sum()} patches"),
            class_=f"tint c{number % _NUM_COLOURS}",
            d=cells_path(item.cluster == number, item.grid),
        )
        for number in range(len(item.anchors))
    ]
    # A dark and a light line, so that an anchor stands out on any picture.
    outlines = _squares(item.anchors, item.grid)
    return _panel(
        item,
        f"the crop with {len(item.anchors)} clusters in colour",
        tag("use", href=f"#{name}", class_="faded"),
        *tints,
        tag("path", class_="anchor under", d=outlines),
        tag("path", class_="anchor", d=outlines),
    )


def visible_panel(item: GalleryItem, name: str) -> Markup:
    """Return only the visible patches; the hidden ones have the colour of the page."""
    return _panel(
        item,
        f"the {int(item.visible.sum())} visible patches",
        tag("use", href=f"#{name}"),
        tag("path", class_="hidden", d=cells_path(~item.visible, item.grid)),
    )


def cells_path(chosen: NDArray[np.bool_], grid: tuple[int, int]) -> str:
    """Return an SVG path over the chosen cells [N] of a grid, a rectangle for each run in a row."""
    rows, cols = grid
    parts: list[str] = []
    for row, line in enumerate(chosen.reshape(rows, cols)):
        steps = np.diff(np.concatenate([[0], line.astype(np.int8), [0]]))
        for first, end in zip(np.flatnonzero(steps > 0), np.flatnonzero(steps < 0), strict=True):
            parts.append(f"M{first} {row}h{end - first}v1h-{end - first}z")
    return "".join(parts)


def _squares(cells: NDArray[np.integer], grid: tuple[int, int]) -> str:
    return "".join(f"M{cell % grid[1]} {cell // grid[1]}h1v1h-1z" for cell in map(int, cells))


def _panel(item: GalleryItem, description: str, *children: Markup) -> Markup:
    rows, cols = item.grid
    return tag(
        "svg",
        *children,
        class_="panel",
        viewBox=f"0 0 {cols} {rows}",
        role="img",
        aria_label=description,
    )
