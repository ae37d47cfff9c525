"""A report as one HTML file that loads nothing: head, large numbers, sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from tessera.evaluation.page.markup import Markup, join, tag
from tessera.pipeline.durable import write_text

_STYLE = Path(__file__).with_name("style.css")
# A browser that follows this policy fetches nothing and runs no script, whatever a caption holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_MARK = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 3 3' fill='%230d7a70'>"
    "<path d='M0 0h1v1H0zM2 0h1v1H2zM1 1h1v1H1zM0 2h1v1H0zM1 2h1v1H1z'/></svg>"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """A large number at the top."""

    label: str
    """What it counts."""
    value: str
    """The number, as it is shown."""
    against: str = ""
    """What to compare it with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page."""

    name: str
    """Anchor in the address."""
    title: str
    """Heading."""
    content: Markup
    """What it shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A whole report."""

    title: str
    """Heading of the page."""
    status: str
    """One word for how it ended."""
    is_good: bool
    """Whether that is what was wanted."""
    subject: str
    """What the page is about, beside the status."""
    summary: str
    """The result in a sentence or two."""
    headlines: Sequence[Headline]
    """Large numbers."""
    facts: Sequence[tuple[str, str]] = ()
    """(name, value) of small print."""
    sections: Sequence[Section]
    """Parts, in order."""
    created: str = ""
    """ISO 8601 time of writing; empty leaves it out."""


def write_document(document: Document, path: Path) -> None:
    """Write the page, whole or not at all.

    Args:
        document: What to show.
        path: The file; its folder is made when missing, and an older file is replaced at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_document(document))


def render_document(document: Document) -> str:
    """Return the page as text; the same document gives the same text."""
    first = document.sections[0].name if document.sections else "top"
    links = (tag("a", each.title, href=f"#{each.name}") for each in document.sections)
    sections = (
        tag("section", tag("h2", each.title), each.content, id=each.name)
        for each in document.sections
    )
    content = [
        tag("a", "Skip to the results", href=f"#{first}", class_="skip"),
        _head(document),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *sections),
        _foot(document),
    ]
    return render_page(document.title, join(content))


def render_page(title: str, content: Markup) -> str:
    """Return a page of any content in the style of the reports.

    Args:
        title: Of the browser's window.
        content: What it shows.
    """
    body = tag("body", tag("div", content, class_="page"))
    return f"<!doctype html>\n{tag('html', _meta(title), body, lang='en')}\n"


def definitions(facts: Sequence[tuple[str, str]], look: str = "facts") -> Markup:
    """Return names and values as a definition list."""
    rows = [tag("div", tag("dt", name), tag("dd", str(value), dir="auto")) for name, value in facts]
    return tag("dl", *rows, class_=look)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], look: str) -> Markup:
    """Return a table whose cells carry their column's name, for a phone that stacks them."""
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(
                tag("td", cell, data_label=head)
                for head, cell in zip(heads[1:], row[1:], strict=True)
            ),
        )
        for row in rows
    ]
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    return tag("table", head, tag("tbody", *body), class_=look)


def _meta(title: str) -> Markup:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href=f"data:image/svg+xml,{_MARK}"),
        # Not escaped: a style sheet is read as it stands, and this one is the package's own.
        tag("style", Markup(_STYLE.read_text(encoding="utf-8"))),
    )


def _head(document: Document) -> Markup:
    line = tag(
        "p",
        tag("span", document.status, class_="badge good" if document.is_good else "badge warning"),
        tag("span", document.subject),
        tag("span", _date(document.created)) if document.created else None,
        class_="meta",
    )
    numbers = [
        tag(
            "div",
            tag("dt", each.label),
            tag("dd", each.value, class_="big"),
            tag("dd", each.against, class_="against"),
        )
        for each in document.headlines
    ]
    return tag(
        "header",
        tag("p", "Tessera", class_="brand"),
        tag("h1", document.title, dir="auto"),
        line,
        tag("p", document.summary, class_="summary"),
        tag("dl", *numbers, class_="headlines") if numbers else None,
        definitions(document.facts) if document.facts else None,
        class_="top",
    )


def _foot(document: Document) -> Markup:
    when = f" on {_date(document.created)}" if document.created else ""
    text = f"Written by Tessera{when}. This file holds everything it shows and loads nothing."
    return tag("footer", tag("p", text))


def _date(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = ""
    if moment.tzinfo is not None:
        zone = " UTC" if moment.utcoffset() == timedelta(0) else f" UTC{moment.isoformat()[-6:]}"
    return f"{moment:%Y-%m-%d %H:%M}{zone}"
