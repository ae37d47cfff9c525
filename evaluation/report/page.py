"""The page: head, numbers, sections, written as one file that loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from evaluation.report import result_sections, training_sections
from evaluation.report.data import ReportData
from evaluation.report.markup import Markup, tag
from evaluation.report.summary import headlines, summary
from pipeline.durable import write_text

_STYLE = Path(__file__).with_name("style.css")
# A browser that follows this policy fetches nothing and runs no script, whatever a caption holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_MARK = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 3 3' fill='%230d7a70'>"
    "<path d='M0 0h1v1H0zM2 0h1v1H2zM1 1h1v1H1zM0 2h1v1H0zM1 2h1v1H1z'/></svg>"
)
_SECTIONS: tuple[tuple[str, str, Callable[[ReportData], Markup]], ...] = (
    ("learning", "Learning", training_sections.learning),
    ("seen", "What the model saw", result_sections.gallery),
    ("evaluation", "Evaluation", result_sections.evaluation),
    ("retrieval", "Retrieval examples", result_sections.retrieval),
    ("time", "Where the time went", training_sections.time),
    ("data", "Data", training_sections.data_section),
    ("configuration", "Configuration", training_sections.configuration),
    ("repeat", "How to repeat it", training_sections.repeat),
)


def write_report(data: ReportData, path: Path) -> None:
    """Write the report as one HTML file, whole or not at all.

    Args:
        data: What to show. Missing parts are named on the page.
        path: The file; its folder is made when missing, and an older file is replaced at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Return the page as text; the same data gives the same text."""
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#learning", class_="skip"),
        tag("div", _head(data), _navigation(), _main(data), _foot(data), class_="page"),
    )
    return f"<!doctype html>\n{tag('html', _meta(data), body, lang='en')}\n"


def _meta(data: ReportData) -> Markup:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", data.title or "Tessera run"),
        tag("link", rel="icon", href=f"data:image/svg+xml,{_MARK}"),
        # Not escaped: a style sheet is read as it stands, and this one is the package's own.
        tag("style", Markup(_STYLE.read_text(encoding="utf-8"))),
    )


def _head(data: ReportData) -> Markup:
    look = "badge good" if data.status == "finished" else "badge warning"
    line = tag(
        "p",
        tag("span", data.status, class_=look),
        tag("span", f"recipe {data.recipe}"),
        tag("span", _date(data.created)) if data.created else None,
        class_="meta",
    )
    numbers = [
        tag(
            "div",
            tag("dt", each.label),
            tag("dd", each.value, class_="big"),
            tag("dd", each.against, class_="against"),
        )
        for each in headlines(data)
    ]
    return tag(
        "header",
        tag("p", "Tessera", class_="brand"),
        tag("h1", data.title or "Untitled run", dir="auto"),
        line,
        tag("p", summary(data), class_="summary"),
        tag("dl", *numbers, class_="headlines") if numbers else None,
        training_sections.definitions(data.facts) if data.facts else None,
        class_="top",
    )


def _navigation() -> Markup:
    links = (tag("a", title, href=f"#{name}") for name, title, _ in _SECTIONS)
    return tag("nav", *links, aria_label="Sections")


def _main(data: ReportData) -> Markup:
    sections = (
        tag("section", tag("h2", title), render(data), id=name) for name, title, render in _SECTIONS
    )
    return tag("main", *sections)


def _foot(data: ReportData) -> Markup:
    when = f" on {_date(data.created)}" if data.created else ""
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
