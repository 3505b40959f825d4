"""A chart with its words, and the colours that mean the same in every figure.

Knows nothing of runs, files or pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.svg import Chart

STOP_LOOKS = {"complete": "s1", "converged": "s2", "eos": "s3", "failed": "s4"}
"""Stop reason → class, in the order in which they are stacked."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its words."""

    name: str
    """Of its exported file and of its place in the page."""
    title: str
    caption: str
    chart: Chart
