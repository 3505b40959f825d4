"""A chart with its words, and the colours that mean the same in every figure.

Knows nothing of runs, files or pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.svg import Chart

STOPS = ("complete", "converged", "eos", "failed")
"""Stop reasons, in the order in which they are stacked and have the classes s1 … s4."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its words."""

    name: str
    """Of its exported file and of its place in the page."""
    title: str
    caption: str
    chart: Chart


def stop_order(stop: str) -> int:
    """A stop reason's place in a stack; reasons that are not known here come last."""
    return STOPS.index(stop) if stop in STOPS else len(STOPS)


def stop_look(stop: str) -> str:
    """A stop reason's class."""
    return f"s{stop_order(stop) + 1}" if stop in STOPS else "s6"
