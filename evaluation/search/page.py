"""The page of a search: a field for a text, one for a picture, and what was found."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tessera.evaluation.image_sets import IMAGE_FORMATS
from tessera.evaluation.page.document import render_page
from tessera.evaluation.page.markup import Markup, join, shorten, tag
from tessera.evaluation.page.numbers import count
from tessera.evaluation.report.pictures import data_uri
from tessera.evaluation.search.engine import Hit, Search
from tessera.pipeline.decoding.picture import on_white

_SIDE = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A query and what was found for it."""

    query: str = ""
    """Text of the query, for the field."""
    about: str = ""
    """What was looked for, in words."""
    picture: NDArray[np.uint8] | None = None
    """[H, W, 3] uint8, the query if it was a picture."""
    hits: Sequence[Hit] = field(default_factory=tuple)
    """What was found, best first."""
    problem: str = ""
    """Why nothing was found."""


def render_search(search: Search, model: str, answer: Answer) -> str:
    """Return the whole page.

    Args:
        search: finds the pictures that are shown.
        model: name of the model.
        answer: to the query of this request.
    """
    body = join(
        [
            tag(
                "header",
                tag("p", "Tessera", class_="brand"),
                tag("h1", f"{count(search.size)} pictures"),
                tag("p", f"{model} on {search.pictures.name}", class_="meta", dir="auto"),
                _text_form(answer.query),
                _picture_form(),
                class_="top",
            ),
            tag("main", _answer(search, answer)),
        ]
    )
    return render_page(f"{answer.about or 'Search'} \N{EN DASH} Tessera", body)


def thumbnail(data: bytes, side: int = _SIDE) -> NDArray[np.uint8]:
    """A picture upright and small.

    Args:
        data: image file.
        side: its longer side at most, in pixels.

    Returns:
        [H, W, 3] uint8.

    Raises:
        OSError: it cannot be decoded.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
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


def _text_form(query: str) -> Markup:
    return tag(
        "form",
        tag(
            "input",
            type="search",
            name="q",
            value=query,
            aria_label="Text to look for",
            placeholder="a dog on the beach",
            autocomplete="off",
            maxlength="1000",
        ),
        tag("button", "Search"),
        method="get",
        action="/",
        class_="search",
    )


def _picture_form() -> Markup:
    return tag(
        "form",
        tag("input", type="file", name="picture", accept="image/*", aria_label="Picture"),
        tag("button", "Search by this picture"),
        method="post",
        action="/",
        enctype="multipart/form-data",
        class_="search",
    )


def _answer(search: Search, answer: Answer) -> Markup | None:
    if answer.problem:
        return tag("p", answer.problem, class_="none")
    if not answer.about:
        return tag("p", "Nothing asked yet.", class_="none")
    query = None
    if answer.picture is not None:
        query = tag("img", src=data_uri(answer.picture, _SIDE), alt="the query", class_="query")
    items = [_hit(search, hit) for hit in answer.hits]
    return join([tag("h2", answer.about, dir="auto"), query, tag("ol", *items, class_="hits")])


def _hit(search: Search, hit: Hit) -> Markup:
    return tag(
        "li",
        tag(
            "a",
            _picture(search, hit),
            href=f"/?like={hit.place}",
            title="more like this one",
        ),
        tag("p", f"{hit.score:.3f}", class_="mark"),
        tag("p", shorten(hit.caption, 140), class_="caption", dir="auto") if hit.caption else None,
        tag("p", hit.key, class_="key", dir="auto"),
    )


def _picture(search: Search, hit: Hit) -> Markup:
    try:
        source = data_uri(thumbnail(search.file(hit.place)), _SIDE)
    except OSError as error:
        return tag("span", f"cannot be read: {error}", class_="none")
    return tag("img", src=source, alt=hit.caption or hit.key)
