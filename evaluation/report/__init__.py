"""The report of a run: one HTML file that needs nothing beside it."""

from __future__ import annotations

from evaluation.report.data import (
    FewShotResult,
    GalleryItem,
    LinearProbeResult,
    ReportData,
    RetrievalExample,
    RetrievalScores,
    StepSeries,
    SugarCrepeResult,
    WinogroundResult,
    ZeroShotResult,
)
from evaluation.report.page import render_report, write_report

__all__ = [
    "FewShotResult",
    "GalleryItem",
    "LinearProbeResult",
    "ReportData",
    "RetrievalExample",
    "RetrievalScores",
    "StepSeries",
    "SugarCrepeResult",
    "WinogroundResult",
    "ZeroShotResult",
    "render_report",
    "write_report",
]
