"""The report of a run: what it learned, saw and cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tessera.evaluation.page.document import Document, Section, render_document, write_document
from tessera.evaluation.page.markup import Markup
from tessera.evaluation.report import result_sections, training_sections
from tessera.evaluation.report.data import ReportData
from tessera.evaluation.report.summary import headlines, summary

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
    write_document(_document(data), path)


def render_report(data: ReportData) -> str:
    """Return the page as text; the same data gives the same text."""
    return render_document(_document(data))


def _document(data: ReportData) -> Document:
    return Document(
        title=data.title or "Untitled run",
        status=data.status,
        is_good=data.status == "finished",
        subject=f"recipe {data.recipe}",
        summary=summary(data),
        headlines=headlines(data),
        facts=data.facts,
        sections=[
            Section(name=name, title=title, content=render(data))
            for name, title, render in _SECTIONS
        ],
        created=data.created,
    )
