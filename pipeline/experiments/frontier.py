"""Accuracy against cost: a dot for each decoding, a line along each Pareto front.

A dot shows its numbers as a tooltip.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.experiments.paired import Cost, Outcomes, front
from pipeline.report.export import standalone
from pipeline.report.figure import Figure
from pipeline.report.svg import Axis, Chart

TICKS: dict[Cost, tuple[int, ...]] = {
    "forwards": (
        *(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    ),
    "positions": tuple(digit * 10**zeros for zeros in range(1, 8) for digit in (1, 2, 5)),
    "milliseconds": tuple(digit * 10**zeros for zeros in range(7) for digit in (1, 2, 5)),
}
LABELS: dict[Cost, str] = {
    "forwards": "mean forwards a problem",
    "positions": "mean positions computed a problem",
    "milliseconds": "mean milliseconds a problem",
}
LOG_FROM = 4.0
"""Ratio of the largest cost to the smallest from which on their axis is logarithmic."""
LABELLED_RADIUS, PLAIN_RADIUS = 6.5, 3.5
WRITING = "font-size:8.5px;font-weight:600;fill:#ffffff;pointer-events:none"
"""Style of labels inside dots; inline, so that it overrides the stylesheet's rule for text."""


@dataclass(frozen=True, slots=True)
class Series:
    """Decodings that share a colour and a front."""

    name: str
    style: str
    """CSS class of the colour, s1 … s6."""
    outcomes: Sequence[Outcomes]
    labels: Mapping[str, str]
    """A few characters on an outcome's dot, by its name; others are plain dots."""
    tooltips: Mapping[str, str]
    """First words of an outcome's tooltip, by its name; by default the name itself."""


def frontier(series: Sequence[Series], title: str, cost: Cost = "forwards") -> str:
    """The drawing as a self-contained SVG. Outcomes without a decoded row are left out."""
    shown = [o for one in series for o in one.outcomes if o.is_decoded]
    if not shown:
        raise ValueError("no decoding has a decoded row; there is nothing to draw")
    chart = Chart(_cost_axis(shown, cost), _accuracy_axis(shown))
    for one in series:
        chart.legend.append((one.style, "line", one.name))
        _steps(chart, front(one.outcomes, cost), one.style, cost)
    for one in series:
        for outcomes in one.outcomes:
            if outcomes.is_decoded:
                _whisker(chart, outcomes, one.style, cost)
    for one in series:
        # Labelled dots stand above plain ones.
        for outcomes in sorted(one.outcomes, key=lambda o: o.name in one.labels):
            if outcomes.is_decoded:
                _dot(chart, outcomes, one, cost)
    return standalone(Figure("frontier", title, "", chart))


def _cost_axis(shown: Sequence[Outcomes], cost: Cost) -> Axis:
    low = min(o.mean(cost) for o in shown) / 1.15
    high = max(o.mean(cost) for o in shown) * 1.15
    if high / low < LOG_FROM:
        return Axis(LABELS[cost], low, high)
    marks = tuple((float(tick), f"{tick:,}") for tick in TICKS[cost] if low <= tick <= high)
    return Axis(f"{LABELS[cost]} (log scale)", low, high, log=True, marks=marks)


def _accuracy_axis(shown: Sequence[Outcomes]) -> Axis:
    low = min(o.interval[0] for o in shown)
    high = max(o.interval[1] for o in shown)
    air = 0.04 * (high - low)
    return Axis("accuracy (95 %)", max(0.0, low - air), min(1.0, high + air), percent=True)


def _steps(chart: Chart, best: Sequence[Outcomes], style: str, cost: Cost) -> None:
    """The Pareto front as a step line: the best accuracy within that cost."""
    xs: list[float] = []
    ys: list[float] = []
    for outcomes in best:
        if ys:
            xs.append(outcomes.mean(cost))
            ys.append(ys[-1])
        xs.append(outcomes.mean(cost))
        ys.append(outcomes.accuracy)
    if len(best) > 1:
        chart.line(xs, ys, style)


def _whisker(chart: Chart, outcomes: Outcomes, style: str, cost: Cost) -> None:
    x = chart.px(outcomes.mean(cost))
    low, high = map(chart.py, outcomes.interval)
    chart.marks.append(
        f'<line class="line {style}" style="stroke-width:1;stroke-opacity:.35" '
        f'x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    )


def _dot(chart: Chart, outcomes: Outcomes, series: Series, cost: Cost) -> None:
    x, y = chart.px(outcomes.mean(cost)), chart.py(outcomes.accuracy)
    label = series.labels.get(outcomes.name, "")
    radius = LABELLED_RADIUS if label else PLAIN_RADIUS
    low, high = outcomes.interval
    tooltip = (
        f"{series.tooltips.get(outcomes.name, outcomes.name)}: {outcomes.accuracy:.1%} "
        f"({low:.1%} to {high:.1%}), {outcomes.mean_forwards:.1f} forwards"
    )
    if cost == "positions":
        tooltip += f", {outcomes.mean_positions:,.0f} positions"
    if cost == "milliseconds":
        tooltip += f", {outcomes.mean_milliseconds:,.1f} ms"
    writing = (
        f'<text style="{WRITING}" x="{x:.1f}" y="{y + 3:.1f}" text-anchor="middle">'
        f"{html.escape(label)}</text>"
        if label
        else ""
    )
    opacity = 1 if label else 0.6
    chart.marks.append(
        f'<g><title>{html.escape(tooltip)}</title><circle class="dot {series.style}" '
        f'style="fill-opacity:{opacity}" stroke="#ffffff" stroke-width="0.7" '
        f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>{writing}</g>'
    )
