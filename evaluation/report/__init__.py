"""The report of a run: one HTML file that needs nothing beside it."""

from __future__ import annotations

from tessera.evaluation.report.data import (
    GalleryItem,
    ReportData,
    RetrievalExample,
    StepSeries,
)
from tessera.evaluation.report.page import render_report, write_report

__all__ = [
    "GalleryItem",
    "ReportData",
    "RetrievalExample",
    "StepSeries",
    "render_report",
    "write_report",
]
