"""A chart with its title and caption, and the colours that mean the same in every figure."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.svg import Chart

STOPS = ("complete", "converged", "eos", "failed")
"""Stop reasons, in the order in which they are stacked; their CSS classes are s1 … s4."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its title and caption."""

    name: str
    """Of its exported file and of its element in the page."""
    title: str
    caption: str
    chart: Chart


def stop_order(stop: str) -> int:
    """A stop reason's position in a stack; unknown reasons come last."""
    return STOPS.index(stop) if stop in STOPS else len(STOPS)


def stop_style(stop: str) -> str:
    """A stop reason's CSS class."""
    return f"s{stop_order(stop) + 1}" if stop in STOPS else "s6"
